"""Placement of the real sparse model's parameters and moments; one program for all batches."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from bigram_trainer import host_batch, make_objective
from jax.sharding import PartitionSpec as P

from experiments.pretrain import mm1_tiny_moe
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.image_buffer import ImageBuffer
from mm1_jax.train.metrics import divide

ROWS, LENGTH, IMAGES = 8, 16, 2

# Specs derived by hand: heads, hidden units and the vocabulary are split over `model`, the model
# dim over `fsdp`, experts over `expert`. Stacked dims come first: [groups] or [groups, layers].
EXPECTED = {
    "data 2, fsdp 2, model 2": {
        "decoder/embedding/weight": P("model", "fsdp"),
        "decoder/stack/layer/attention/query/kernel": P(None, None, "fsdp", "model", None),
        "decoder/stack/layer/feed_forward/down/kernel": P(None, None, "fsdp", "model"),
        "decoder/stack/last_layer/feed_forward/experts/up": P(None, None, "fsdp", "model"),
        "decoder/stack/last_layer/feed_forward/router": P(None, "fsdp", None),
        "decoder/norm/scale": P(None),
    },
    "data 2, expert 4": {
        "decoder/embedding/weight": P(None, None),
        "decoder/stack/layer/attention/query/kernel": P(None, None, None, None, None),
        "decoder/stack/layer/feed_forward/down/kernel": P(None, None, None, None),
        "decoder/stack/last_layer/feed_forward/experts/up": P(None, "expert", None, None),
        "decoder/stack/last_layer/feed_forward/router": P(None, None, None),
        "decoder/norm/scale": P(None),
    },
}
MESHES = {
    "data 2, fsdp 2, model 2": {"data": 2, "fsdp": 2, "model": 2},
    "data 2, expert 4": {"data": 2, "expert": 4},
}


@pytest.fixture(scope="module", params=MESHES)
def placed(request, tmp_path_factory, make_batch):
    """The trainer of `mm1_tiny_moe` with fewer pixels, its first state and its compiled step."""
    cfg = mm1_tiny_moe()
    tokenizer = Tokenizer.default_config().instantiate()
    cfg.model.decoder.set(vocab_size=tokenizer.vocab_size)
    cfg.model.set(image_token=tokenizer.image_token)
    cfg.model.vision_encoder.set(num_layers=1, image_size=16)
    cfg.trainer.optimizer.set(learning_rate=1e-3, decay_steps=800)
    cfg.trainer.parallelism.set(**MESHES[request.param])
    folder = tmp_path_factory.mktemp("run")
    batch = with_images(make_batch, tokenizer.image_token)
    trainer = cfg.trainer.instantiate(
        objective=make_objective(
            cfg.model, cfg.trainer.loss, batch=batch, image_buffer=ImageBuffer(1, IMAGES)
        ),
        input=SimpleNamespace(batch_size=ROWS, corpus_names=["captions", "text"]),
        evaluators={},
        output_dir=folder,
    )
    program = trainer.program
    return SimpleNamespace(
        expected=EXPECTED[request.param],
        program=program,
        batch=batch,
        step=program.compile(),
        place=lambda batch: program.place(host_batch(batch)),
        first_state=lambda: program.first_state(jax.random.key(0)),
        checkpointer=lambda: cfg.trainer.checkpointer.instantiate(directory=folder / "checkpoints"),
    )


def with_images(make_batch, image_token):
    """Makes rows that begin with all positions of their two images."""
    batch = make_batch(0, rows=ROWS, length=LENGTH, images=IMAGES)
    tokens, loss_mask = batch.tokens.copy(), batch.loss_mask.copy()
    tokens[tokens == image_token] += 1
    tokens[:, : 4 * IMAGES], loss_mask[:, : 4 * IMAGES] = image_token, False
    loss_mask[:, -2] = True
    return dataclasses.replace(
        batch,
        tokens=tokens,
        loss_mask=loss_mask,
        segment_ids=np.ones_like(tokens),
        corpus_ids=np.zeros_like(tokens),
        images=np.random.default_rng(0).integers(
            0, 256, (ROWS * IMAGES, 16, 16, 3), dtype=np.uint8
        ),
    )


def named(params):
    return {
        "/".join(str(part.key) for part in path): x
        for path, x in jax.tree_util.tree_leaves_with_path(params)
    }


def check_places(state, expected):
    """Asserts that parameters and their two moments have the expected shardings."""
    (adam,) = (
        each
        for each in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu"))
        if hasattr(each, "mu")
    )
    for tree in (state.params, adam.mu, adam.nu):
        arrays = named(tree)
        for name, spec in expected.items():
            array = arrays[name]
            assert array.sharding.spec == spec, name
            # Each device does hold a part of this shape.
            sizes = dict(array.sharding.mesh.shape)
            part = tuple(
                size // sizes.get(axis, 1) for size, axis in zip(array.shape, spec, strict=True)
            )
            assert {shard.data.shape for shard in array.addressable_shards} == {part}, name
    # Every moment has the sharding of its parameter.
    for moments in (adam.mu, adam.nu):
        places = jax.tree.map(lambda x: x.sharding, moments)
        assert places == jax.tree.map(lambda x: x.sharding, state.params)


def test_a_step_and_a_restore_keep_every_sharding(placed):
    state, _ = placed.step(placed.first_state(), placed.place(placed.batch))
    check_places(state, placed.expected)
    checkpointer = placed.checkpointer()
    checkpointer.save(1, state, {})
    checkpointer.wait()
    restored, _ = checkpointer.restore(placed.program.abstract_state)
    checkpointer.close()
    check_places(restored, placed.expected)
    # The restored state goes through the same program.
    placed.step(restored, placed.place(placed.batch))


def test_a_batch_without_images_uses_the_same_program(placed):
    batch = placed.batch
    text = dataclasses.replace(
        batch,
        tokens=np.where(batch.loss_mask, batch.tokens, 5).astype(np.int32),
        image_index=np.full_like(batch.image_index, -1),
        images=np.zeros_like(batch.images),
    )
    state, metrics = placed.step(placed.first_state(), placed.place(text))
    values = divide(metrics)
    assert values["images"] == 0
    assert np.isfinite([values["loss"], values["grad_norm"]]).all()
    _, metrics = placed.step(state, placed.place(batch))
    values = divide(metrics)
    assert values["images"] == ROWS * IMAGES
    assert np.isfinite([values["loss"], values["grad_norm"]]).all()
