"""Runs on a JSONL file with pictures: missing, broken and edited data."""

import dataclasses
import io
import json
import sys
from types import ModuleType

import numpy as np
import PIL.Image
import pytest

from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.captions import caption_document
from mm1_jax.data.input import Input
from mm1_jax.data.mixture import CorpusWeight, Stream
from mm1_jax.data.sources.jsonl import JsonlSource
from mm1_jax.experiment import Experiment
from mm1_jax.launch.__main__ import main
from mm1_jax.models.connectors.average_pooling import AveragePooling
from mm1_jax.models.decoder import Decoder
from mm1_jax.models.mm1 import MM1
from mm1_jax.models.vision_encoder import VisionEncoder
from mm1_jax.train.trainer import Trainer

NUM_RECORDS, STEPS = 12, 5


@pytest.fixture
def records(tmp_path):
    """The JSONL file of captioned pictures."""
    lines = []
    for i in range(NUM_RECORDS):
        file = io.BytesIO()
        PIL.Image.new("RGB", (8, 8), (20 * i, 100, 50)).save(file, "PNG")
        (tmp_path / f"{i}.png").write_bytes(file.getvalue())
        lines.append(json.dumps({"image": f"{i}.png", "caption": f"picture {i % 10}"}))
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(lines))
    return path


def input_config(path) -> Input.Config:
    corpus = Corpus.default_config().set(
        name="pairs",
        source=JsonlSource.default_config().set(path=str(path)),
        to_document=caption_document,
    )
    stream = Stream.default_config().set(name="captions", corpora=[CorpusWeight(corpus=corpus)])
    return Input.default_config().set(
        streams=[stream],
        batch_size=2,
        max_sequence_length=32,
        max_images=3,
        prefetch=0,
        max_bad_fraction=0.2,
    )


def built(path, **runtime) -> Input:
    return input_config(path).set(num_image_tokens=2, image_size=8).instantiate(**runtime)


def test_a_corrupt_picture_is_counted_and_named_and_nothing_else_changes(records, tmp_path):
    clean = built(records).iterator()
    expected = [next(clean) for _ in range(STEPS)]
    picture = tmp_path / "3.png"
    picture.write_bytes(picture.read_bytes()[:40])

    quarantine = tmp_path / "quarantine.jsonl"
    iterator = built(records, quarantine_path=quarantine).iterator()
    lost = 0
    for batch in expected:
        broken = next(iterator)
        changed = (broken.image_index < 0) & (batch.image_index >= 0)
        # Each document has one picture, so slots and documents of a row are numbered alike.
        for b, slot in zip(*np.nonzero(changed), strict=True):
            document = batch.segment_ids[b] == slot + 1
            assert not broken.loss_mask[b, document].any() and batch.loss_mask[b, document].any()
            batch.loss_mask[b, document] = False
            batch.images[batch.image_index[b, slot]] = 0
            batch.image_index[b, slot] = -1
            lost += 1
        for field in dataclasses.fields(batch):
            np.testing.assert_array_equal(getattr(broken, field.name), getattr(batch, field.name))
    assert lost and iterator.accounting()["pairs"]["bad_documents"] == lost
    (entry,) = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert (entry["corpus"], entry["record"], entry["epoch"]) == ("pairs", 3, 0)
    assert entry["reason"].startswith("image 0: ")


def test_edited_data_with_unchanged_lengths_is_rejected_on_resume(records, tmp_path):
    state = built(records).iterator().get_state()
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in (records, *tmp_path.glob("*.png")):
        (moved / path.name).write_bytes(path.read_bytes())
    built(moved / records.name).iterator().set_state(state)

    edited = records.read_text().replace('"1.png"', '"#"').replace('"2.png"', '"1.png"')
    records.write_text(edited.replace('"#"', '"2.png"'))
    with pytest.raises(ValueError, match="with different batches") as error:
        built(records).iterator().set_state(state)
    (line,) = str(error.value).splitlines()[1:-1]
    assert line.startswith("  pairs.source: bytes=") and "digest=" in line


def experiment() -> Experiment.Config:
    model = MM1.default_config().set(
        vision_encoder=VisionEncoder.default_config().set(
            image_size=8, patch_size=4, model_dim=8, num_layers=1, num_heads=2, hidden_dim=16
        ),
        connector=AveragePooling.default_config().set(num_image_tokens=4),
        decoder=Decoder.default_config().set(
            model_dim=16, num_layers=1, num_heads=2, hidden_dim=24
        ),
    )
    trainer = Trainer.default_config().set(max_steps=1)
    trainer.optimizer.warmup_steps = 0
    return Experiment.default_config().set(
        model=model,
        input=input_config("records.jsonl"),
        trainer=trainer,
    )


@pytest.mark.parametrize("override", [None, "elsewhere/records.jsonl"])
def test_a_launch_without_its_data_names_the_field_and_the_file(
    override, tmp_path, capsys, monkeypatch
):
    module = ModuleType("experiment_without_data")
    module.named_configs = lambda: {"pairs": experiment}
    monkeypatch.setitem(sys.modules, module.__name__, module)
    argv = [f"--module={module.__name__}", "--config=pairs", f"--output_dir={tmp_path / 'run'}"]
    if override:
        argv.append(f"--config.input.streams.0.corpora.0.corpus.source.path={override}")
    assert main(argv) == 2
    captured = capsys.readouterr()
    missing = f"data/{override or 'records.jsonl'}"
    assert captured.err.startswith(f"error: Corpus 'pairs': source.path='{missing}' is not a file")
    assert "Traceback" not in captured.err
