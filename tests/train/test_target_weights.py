"""Weights of targets, and packed against unpacked training of the same conversations."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bigram_trainer import host_batch, make_batch, make_objective
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mm1_jax.data.rows import BufferPart, LoadedExample, RowShape, concatenate
from mm1_jax.models.connectors.average_pooling import AveragePooling
from mm1_jax.models.cross_entropy import token_losses
from mm1_jax.models.image_exchange import merge_images
from mm1_jax.models.mm1 import MM1
from mm1_jax.parallel.parallelism import Parallelism
from mm1_jax.train.loss import Loss
from mm1_jax.train.metrics import divide
from mm1_jax.train.optimizers.adamw import AdamW
from mm1_jax.train.program import Program, ProgramSpec
from mm1_jax.train.target_weights import scored_in_document, target_weights

WEIGHTINGS = ("token", "sample", "square_root")
POWERS = {"token": 0.0, "sample": -1.0, "square_root": -0.5}
IMAGE, IMAGE_SIZE, NUM_IMAGE_TOKENS, VOCAB_SIZE = 3, 8, 4, 24
LENGTH, SLOTS = 48, 4


@pytest.fixture(scope="module")
def rows():
    """Rows of segments with 0 to all targets scored, some up to the end of the row."""
    rng = np.random.default_rng(0)
    segment_ids = np.zeros((8, 24), np.int32)
    for row in segment_ids:
        cuts = np.sort(rng.integers(0, 25, 4))
        for number, (start, stop) in enumerate(zip(cuts, cuts[1:], strict=False), start=1):
            row[start:stop] = number
    share = rng.choice([0.0, 0.3, 1.0], (8, 4))
    is_scored = rng.random((8, 24)) < np.take_along_axis(share, segment_ids, axis=1)
    return is_scored & (segment_ids > 0), segment_ids


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weights_equal_those_of_a_loop_over_documents(rows, weighting):
    loss_mask, segment_ids = rows
    expected = np.zeros(loss_mask.shape, np.float32)
    for b, t in zip(*np.nonzero(loss_mask), strict=True):
        n = (loss_mask[b] & (segment_ids[b] == segment_ids[b, t])).sum()
        expected[b, t] = float(n) ** POWERS[weighting]
    found = target_weights(jnp.asarray(loss_mask), jnp.asarray(segment_ids), weighting)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_counts_do_not_depend_on_where_rows_are_cut(rows):
    mesh = jax.make_mesh((2, 4), ("data", "seq"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, P("data", "seq"))
    count = jax.jit(scored_in_document, in_shardings=(sharding,) * 2, out_shardings=sharding)
    lowered = count.lower(*map(jnp.asarray, rows))
    assert "scatter" not in lowered.as_text()
    found = count(*(jax.device_put(x, sharding) for x in rows))
    np.testing.assert_array_equal(found, scored_in_document(*map(jnp.asarray, rows)))


def packed_batch(seed):
    """A batch of several documents per row."""
    batch, rng = make_batch(seed, length=24), np.random.default_rng(seed)
    segment_ids = 1 + np.cumsum(rng.random((4, 24)) < 0.2, axis=1, dtype=np.int32)
    return dataclasses.replace(batch, segment_ids=segment_ids, loss_mask=rng.random((4, 24)) < 0.4)


@pytest.mark.parametrize("weighting", ["sample", "square_root"])
def test_micro_batches_and_devices_do_not_change_a_step(weighting):
    batch = packed_batch(0)

    def step(num_devices=1, **parallelism):
        objective = make_objective(loss=Loss.default_config().set(weighting=weighting), batch=batch)
        optimizer = AdamW.default_config().set(learning_rate=1e-3, warmup_steps=0, decay_steps=6)
        cfg = Parallelism.default_config().set(**parallelism)
        program = Program(
            ProgramSpec(objective, optimizer=optimizer.set(clip=None), parallelism=cfg),
            jax.devices()[:num_devices],
        )
        state = program.first_state(jax.random.key(0))
        state, metrics = program.compile()(state, program.place(host_batch(batch)))
        return divide(metrics), jax.tree.map(np.asarray, state.opt_state[1][0].mu)

    (metrics, gradient), *others = (
        step(),
        step(gradient_accumulation=2),
        step(8, data=2, fsdp=2, model=2),
        step(4, seq=4),
    )
    assert metrics["loss"] != pytest.approx(metrics["weighted_loss"], rel=1e-3)
    for found, ours in others:
        for name in ("loss", "weighted_loss", "total_loss", "grad_norm"):
            np.testing.assert_allclose(found[name], metrics[name], rtol=1e-5, err_msg=name)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-7), ours, gradient)


def test_the_weighted_loss_is_the_mean_over_conversations():
    """`sample` gives each conversation the mean cross entropy of its targets."""
    batch = packed_batch(1)
    logits = jax.random.normal(jax.random.key(0), (*batch.tokens.shape, 32))
    cross_entropy = np.asarray(token_losses(logits, jnp.asarray(batch.targets))[0])
    documents = [
        cross_entropy[b][batch.loss_mask[b] & (batch.segment_ids[b] == number)]
        for b in range(4)
        for number in np.unique(batch.segment_ids[b])
    ]
    expected = np.mean([each.mean() for each in documents if len(each)])
    layer = type("Identity", (nnx.Module,), {"attend": lambda self, hidden: hidden})()
    loss = Loss.default_config().set(weighting="sample", z_loss=0.0).instantiate()
    total, metrics = loss(logits, layer, jax.tree.map(jnp.asarray, batch), num_corpora=2)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    np.testing.assert_allclose(divide(metrics)["weighted_loss"], expected, rtol=1e-6)
    np.testing.assert_allclose(
        divide(metrics)["loss"], cross_entropy[batch.loss_mask].mean(), rtol=1e-6
    )


@pytest.fixture(scope="module")
def model():
    cfg = MM1.default_config().set(image_token=IMAGE)
    cfg.vision_encoder.set(
        image_size=IMAGE_SIZE, patch_size=2, model_dim=8, num_layers=1, num_heads=2, hidden_dim=8
    )
    # Compiles in a third of a C-Abstractor's time.
    cfg.connector = AveragePooling.default_config().set(num_image_tokens=NUM_IMAGE_TOKENS)
    cfg.decoder.set(
        vocab_size=VOCAB_SIZE, model_dim=16, num_layers=2, num_heads=2, num_kv_heads=1,
        hidden_dim=16,
    )  # fmt: skip
    return cfg.instantiate(rngs=nnx.Rngs(params=0))


def conversations():
    """Six conversations of 9 to 23 positions with 0 to 2 images and 1 to 12 targets.

    Each is an example without slots, and its images.
    """
    rng = np.random.default_rng(3)
    for number, (length, num_images, num_scored) in enumerate(
        [(23, 2, 1), (9, 0, 5), (16, 1, 9), (22, 1, 12), (14, 2, 2), (12, 0, 8)]
    ):
        tokens = rng.integers(4, VOCAB_SIZE, length, dtype=np.int32)
        for k in range(num_images):
            tokens[1 + 5 * k : 1 + 5 * k + NUM_IMAGE_TOKENS] = IMAGE
        loss_mask = np.zeros(length, bool)
        text = np.flatnonzero(np.append(tokens[1:], 2) != IMAGE)
        loss_mask[text[-num_scored:]] = True
        shape = (num_images, IMAGE_SIZE, IMAGE_SIZE, 3)
        example = LoadedExample(
            tokens=tokens,
            targets=np.append(np.where(tokens == IMAGE, 0, tokens)[1:], 2).astype(np.int32),
            loss_mask=loss_mask,
            slots=[],
            corpus=number % 2,
        )
        yield example, rng.integers(0, 256, shape, dtype=np.uint8)


def batch_of(*rows):
    part = BufferPart(range(len(rows) * SLOTS), IMAGE_SIZE)
    placed = []
    for b, row in enumerate(rows):
        placed.append([])
        slots = itertools.count(b * SLOTS)
        for example, images in row:
            own = list(itertools.islice(slots, len(images)))
            for slot, pixels in zip(own, images, strict=True):
                part.put(slot, pixels)
            placed[-1].append(dataclasses.replace(example, slots=own))
    batch = concatenate(placed, RowShape(LENGTH, SLOTS, IMAGE_SIZE), part)
    return jax.tree.map(jnp.asarray, batch)


@functools.cache
def both_packings():
    a, b, c, d, e, f = conversations()
    empty = [[]] * 4
    return batch_of([a, b, c], [d, e, f], *empty), batch_of([a], [b], [c], [d], [e], [f])


def test_packed_and_unpacked_gradients_agree_under_each_weighting(model):
    losses = [Loss.default_config().set(weighting=each).instantiate() for each in WEIGHTINGS]

    def totals(model, batch):
        hidden, layer = model(batch).hidden, model.output_layer()
        found = [loss(hidden, layer, batch, num_corpora=2) for loss in losses]
        return jnp.stack([total for total, _ in found]), [metrics for _, metrics in found]

    gradient = jax.jit(jax.jacrev(totals, has_aux=True))
    (packed, packed_metrics), (unpacked, unpacked_metrics) = (
        gradient(model, batch) for batch in both_packings()
    )
    for found, expected in zip(packed_metrics, unpacked_metrics, strict=True):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5),
            divide(found),
            divide(expected),
        )
    for place, weighting in enumerate(WEIGHTINGS):
        x, y = (
            np.concatenate([np.ravel(leaf[place]) for leaf in jax.tree.leaves(tree)])
            for tree in (packed, unpacked)
        )
        assert np.linalg.norm(x - y) < 1e-5 * np.linalg.norm(y), weighting
    # The weightings do differ.
    first, second = (jax.tree.leaves(unpacked)[0][place] for place in (0, 1))
    assert np.abs(first - second).max() > 0.01 * np.abs(first).max()


def test_no_gradient_flows_from_one_conversation_into_another(model):
    """By the Jacobian of each conversation's loss by all pixels and all input embeddings."""
    batch, _ = both_packings()
    documents = [(b, s) for b in range(2) for s in (1, 2, 3)]
    is_of = np.stack([(np.asarray(batch.segment_ids) == s) for _, s in documents])
    for place, (b, _) in enumerate(documents):
        is_of[place, np.arange(6) != b] = False

    def losses(tokens, images):
        features = model.connector(model.vision_encoder(images))
        is_image = batch.tokens == IMAGE
        embeddings = merge_images(tokens, features, is_image, batch.image_index, group_rows=1)
        hidden = model.decoder(
            embeddings, positions=batch.positions, segment_ids=batch.segment_ids
        ).hidden
        cross_entropy, _ = token_losses(model.logits(hidden), batch.targets)
        return jnp.sum(jnp.where(is_of & batch.loss_mask[None], cross_entropy[None], 0), (1, 2))

    tokens = model.decoder.embed(batch.tokens)
    images = batch.images.astype(jnp.float32)
    by_tokens, by_pixels = jax.jit(jax.jacrev(losses, argnums=(0, 1)))(tokens, images)
    reached = np.abs(np.asarray(by_tokens)).max(axis=-1) > 0
    assert not (reached & ~is_of).any() and reached.any(axis=(1, 2)).all()
    seen = np.abs(np.asarray(by_pixels)).max(axis=(2, 3, 4)) > 0
    owners = [0, 0, 2, None, 3, 4, 4, None, *[None] * 16]
    for slot, owner in enumerate(owners):
        assert list(np.flatnonzero(seen[:, slot])) == ([] if owner is None else [owner])
