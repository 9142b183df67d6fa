import json

import pytest

from experiments import pretrain
from mm1_jax.data.corpora.captions import caption_document
from mm1_jax.data.grid_rules import LeastPadding
from mm1_jax.data.tiling import Tiling
from mm1_jax.launch.__main__ import main
from mm1_jax.launch.launch import Launch
from mm1_jax.launch.named_configs import named_configs
from mm1_jax.small_config import small

# The models of the paper.
PAPER = ("mm1_3b", "mm1_7b", "mm1_30b", "mm1_3b_moe", "mm1_7b_moe", "mm1_1b")
FILES = ("data_dir", "model_path", "path")


def _small(name: str, notes: list[str] | None = None):
    note = None if notes is None else notes.append
    return Launch(name, small=True).resolved_config(note=note)


@pytest.mark.parametrize("name", named_configs())
def test_the_small_version_of_each_config_reads_no_files(name):
    fields = _small(name).to_flat_dict(omit_default_values=())
    read = {path: value for path, value in fields.items() if path.split(".")[-1] in FILES}
    assert {path for path, value in read.items() if value and path != "input.data_dir"} <= {
        "input.tokenizer.data_dir"
    }


@pytest.mark.parametrize("name", [*PAPER, "llama2_7b", "mm1_qwen3_1p7b", "mm1_1b_aim_600m"])
def test_the_small_version_has_the_structure_of_the_large_model(name):
    small, large = _small(name), Launch(name).resolved_config()

    def classes(cfg):
        return {
            path: value
            for path, value in cfg.model.to_flat_dict(omit_default_values=()).items()
            if path.endswith("klass") or isinstance(value, str | bool)
        }

    assert classes(small) == classes(large)
    assert small.model.decoder.moe_every == large.model.decoder.moe_every
    assert [(x.name, x.weight) for x in small.input.streams] == [
        (x.name, x.weight) for x in large.input.streams
    ]
    documents = [
        [entry.corpus.to_document for stream in cfg.input.streams for entry in stream.corpora]
        for cfg in (small, large)
    ]
    assert documents[0] == documents[1]
    if small.model.vision_encoder is not None:
        assert small.input.max_images > 1
        assert (small.input.images_per_row is None) == (large.input.images_per_row is None)
    small.klass.check(small)


def test_sparse_layers_keep_their_spacing():
    decoder = _small("mm1_7b_moe").model.decoder
    assert (decoder.num_layers, decoder.moe_every) == (4, 4)
    assert (decoder.moe.num_experts, decoder.moe.experts_per_token) == (4, 2)


def test_every_change_is_reported():
    notes: list[str] = []
    _small("mm1_7b_moe", notes)
    text = "\n".join(notes)
    for change in (
        "model.decoder: model_dim 4096 -> 64",
        "num_experts 32 -> 4",
        "image_size 378 -> 56",
        "corpus captions is digits_captions",
        "the tokenizer is the one that ships with the package",
        "max_steps 200000 -> 200",
        "mesh_rules 44 entries -> none",
    ):
        assert change in text


def test_overrides_are_applied_to_the_small_version():
    overrides = {"model.decoder.model_dim": "32", "trainer.max_steps": "3"}
    cfg = Launch("mm1_7b_moe", None, overrides, small=True).resolved_config()
    assert cfg.model.decoder.model_dim == 32 and cfg.trainer.optimizer.decay_steps == 3


def test_a_corpus_without_an_embedded_counterpart_is_an_error():
    cfg = Launch("mm1_7b").written_config()
    cfg.input.streams[0].corpora[0].corpus.to_document = _own_document
    with pytest.raises(ValueError, match="corpus 'captions' reads files, and no embedded corpus"):
        cfg.klass.small(cfg)


def _own_document(record):
    return caption_document(record)


@pytest.mark.parametrize("name", ["mm1_3b", "llama2_7b"])
def test_a_small_version_trains_and_is_evaluated(name, tmp_path, capsys):
    argv = [f"--config={name}", "--small", f"--output_dir={tmp_path}"]
    argv += ["--config.trainer.max_steps=2", "--config.evals.held_out_loss.num_batches=1"]
    argv += ["--config.trainer.optimizer.warmup_steps=1"]
    for stream in range(len(Launch(name).resolved_config().input.streams)):
        argv.append(f"--config.input.streams.{stream}.corpora.0.corpus.source.num_records=64")
    assert main(argv) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert any(key.startswith("held_out_loss") for key in report)
    assert "note: --small: model.decoder: " in capsys.readouterr().err


def test_a_dry_run_trains_nothing_and_writes_no_folder(tmp_path, capsys):
    folder = tmp_path / "run"
    argv = ["--config=mm1_tiny", "--small", f"--output_dir={folder}", "--dry_run"]
    for stream, corpora in enumerate((4, 2, 2)):
        argv += [
            f"--config.input.streams.{stream}.corpora.{i}.corpus.source.num_records=64"
            for i in range(corpora)
        ]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert not folder.exists()
    for said in ("parameters", "memory", "of training state", "first batch", "images in 64 slots"):
        assert said in out
    assert out.endswith("dry run: nothing was trained, and no run folder was written\n")


def test_a_small_row_has_room_for_all_views_of_a_picture():
    cfg = pretrain.mm1_3b()
    assert small(cfg).input.max_images == 8
    cfg.input.tiling = Tiling.default_config().set(rule=LeastPadding.default_config())
    assert small(cfg).input.max_images == 10
