"""The fine-tuning configs: their arithmetic, and their batches on several hosts."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from experiments import fine_tune
from mm1_jax.batch import Record
from mm1_jax.data.record_files import IMAGE
from mm1_jax.data.sources.base import Source
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.experiment import Experiment

CHAT = ("mm1_3b_chat", "mm1_7b_chat", "mm1_30b_chat", "mm1_3b_moe_chat", "mm1_7b_moe_chat")


def test_steps_show_as_many_examples_as_the_paper():
    """MM1: 10,000 x 256 = 2.56M, which are 1.8 epochs of 1.45M."""
    cfg = fine_tune.mm1_3b_chat()
    packed = cfg.trainer.max_steps * cfg.input.batch_size * fine_tune.PER_ROW
    assert packed == 10_000 * 256 and cfg.trainer.max_steps == 4_000
    assert packed / 1.45e6 == pytest.approx(1.8, abs=0.05)
    literal = fine_tune.mm1_3b_chat_unpacked()
    shape = (literal.trainer.max_steps, literal.input.batch_size, literal.input.max_sequence_length)
    assert shape == (10_000, 256, 2048) and literal.input.packing.max_examples == 1
    positions = cfg.input.batch_size * cfg.input.max_sequence_length
    assert positions == literal.input.batch_size * literal.input.max_sequence_length


@pytest.mark.parametrize("name", [*CHAT, "mm1_3b_chat_unpacked"])
def test_chat_models_are_fine_tuned_as_in_the_paper(name):
    cfg = Experiment.resolve(getattr(fine_tune, name)())
    optimizer = cfg.trainer.optimizer.instantiate()
    last = cfg.trainer.max_steps - 1
    rates = [float(optimizer.learning_rate(step)) for step in range(0, last, last // 50)]
    assert max(rates) == pytest.approx(1e-5, rel=1e-3)
    assert float(optimizer.learning_rate(last)) == pytest.approx(0, abs=1e-12)
    assert cfg.trainer.optimizer.frozen == () and list(cfg.trainer.initial_weights) == ["model"]
    views = cfg.input.tiling.clone(tile_size=672).instantiate().views(1344, 1344)
    tokens = cfg.input.num_image_tokens * len(views)
    assert (cfg.input.image_size, len(views), tokens) == (672, 5, 720)


class Conversations(Source):
    """Conversations of one to three rounds about up to three pictures, drawn by number."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Record:
        rng = np.random.default_rng((index, len(self.split)))
        pictures = []
        for _ in range(index % 4):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(file, "PNG")
            pictures.append(file.getvalue())
        turns = []
        for number in range(1 + index % 3):
            tag = IMAGE * len(pictures) if number == 0 else ""
            answer = " ".join(["yes"] * int(rng.integers(1, 9)))
            turns += [{"role": "user", "text": f"{tag}question {number}?"}]
            turns += [{"role": "assistant", "text": answer}]
        return {"id": str(index), "images": pictures, "turns": turns}


@pytest.mark.parametrize("name", ["mm1_3b_chat", "mm1_3b_chat_unpacked", "mm1p5_3b_chat"])
def test_a_batch_is_the_same_on_one_two_and_four_hosts(name):
    cfg = getattr(fine_tune, name)().input
    cfg.set(
        batch_size=8,
        max_sequence_length=256,
        max_images=24,
        image_group_rows=2,
        images_per_row=16,
        num_image_tokens=2,
        image_size=16,
        num_workers=0,
        prefetch=0,
        tokenizer=Tokenizer.default_config(),
    )
    cfg.packing.set(num_shards=8, num_bins=min(cfg.packing.num_bins, 4))
    (stream,) = cfg.streams
    stream.corpora = stream.corpora[:: max(1, len(stream.corpora) // 5)]
    categories = {entry.category for entry in stream.corpora}
    for entry in stream.corpora:
        entry.corpus.source = Conversations.default_config()
        entry.corpus.to_document.chat_format = cfg.chat_format
    for field in ("shares", "relative"):
        setattr(
            stream.pool,
            field,
            {k: v for k, v in getattr(stream.pool, field).items() if k in categories},
        )
    made = cfg.instantiate()
    iterators = {
        hosts: [made.iterator(range(r, r + 8 // hosts)) for r in range(0, 8, 8 // hosts)]
        for hosts in (1, 2, 4)
    }
    num_views = 0
    for _ in range(4):
        (whole,), *others = ([next(each) for each in parts] for parts in iterators.values())
        for parts in others:
            for field in dataclasses.fields(whole):
                joined = np.concatenate([getattr(part, field.name) for part in parts])
                np.testing.assert_array_equal(joined, getattr(whole, field.name), field.name)
        num_views += int((whole.image_index >= 0).sum())
        if cfg.packing.max_examples == 1:
            assert whole.segment_ids.max() == 1
    assert num_views > 20
    for parts in iterators.values():
        for each in parts:
            each.close()
