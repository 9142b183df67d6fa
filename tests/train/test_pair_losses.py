"""Contrastive losses: equal to open_clip's on any mesh, in memory that holds a chunk of logits."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mm1_jax.parallel.parallelism import Parallelism
from mm1_jax.parallel.sharding import use_mesh
from mm1_jax.train.pair_losses import Comparison, Exchange, Sigmoid, Softmax, pair_losses

# Written by tests/references/make_arrays.py.
ARRAYS = Path(__file__).parents[1] / "references" / "arrays" / "contrastive.npz"
RULES = {"softmax": Softmax, "sigmoid": Sigmoid}
SCALE, BIAS = 14.0, {"softmax": 0.0, "sigmoid": -3.0}


def mesh_of(num_devices, **axes):
    parallelism = Parallelism.default_config().set(**axes).instantiate()
    return parallelism.mesh(jax.devices()[:num_devices])


def compare(comparison, mesh, *args, real=None, ids=None):
    """Returns the mean loss of the real rows with its gradient, and the losses of pairs."""
    number = len(args[0])
    real = jnp.ones(number, bool) if real is None else jnp.asarray(real)
    ids = jnp.zeros((number, 2), jnp.uint32) if ids is None else jnp.asarray(ids)

    def mean(*args):
        pairs = pair_losses(comparison, *args, real, ids)
        return jnp.sum(pairs.losses) / jnp.sum(real), pairs

    with use_mesh(mesh):
        run = jax.jit(jax.value_and_grad(mean, argnums=(0, 1, 2, 3), has_aux=True))
        (loss, pairs), gradient = run(*(jnp.asarray(x, jnp.float32) for x in args))
    return loss, gradient, pairs


@pytest.fixture(scope="module")
def arrays():
    with np.load(ARRAYS, allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    ("num_devices", "exchange", "chunk_size"),
    [
        (1, Exchange.ALL_GATHER, None),
        (1, Exchange.ALL_GATHER, 8),
        (8, Exchange.ALL_GATHER, None),
        (8, Exchange.ALL_GATHER, 16),
        (8, Exchange.RING, None),
        (8, Exchange.RING, 2),
    ],
)
def test_loss_and_gradients_equal_those_of_open_clip(
    name, num_devices, exchange, chunk_size, arrays
):
    # Two mesh axes split the rows, and one does not.
    mesh = None if num_devices == 1 else mesh_of(8, data=2, fsdp=2, model=2)
    comparison = Comparison(RULES[name], exchange, chunk_size)
    loss, gradient, _ = compare(comparison, mesh, *arrays["features"], SCALE, BIAS[name])
    np.testing.assert_allclose(loss, arrays[f"{name}/loss"], rtol=1e-6)
    for field, found in zip(("images", "texts", "scale", "bias"), gradient, strict=True):
        expected = arrays.get(f"{name}/{field}", np.zeros(()))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6, err_msg=field)


@pytest.mark.parametrize("name", RULES)
def test_empty_rows_and_equal_texts_are_no_negatives(name, arrays):
    """Compared with a loss over the matrix of all logits."""
    images, texts = arrays["features"]
    real = np.arange(32) % 5 != 0
    ids = np.stack([np.arange(32) // 4, np.zeros(32)], axis=1).astype(np.uint32)
    is_pair = np.eye(32, dtype=bool)
    is_negative = ~is_pair & (ids[:, None, 0] != ids[None, :, 0]) & real[None] & real[:, None]

    def dense(images, texts, scale, bias):
        logits = scale * images @ texts.T + bias
        if name == "softmax":
            logits = jnp.where(is_pair | is_negative, logits, -jnp.inf)
            sums = [jax.nn.logsumexp(logits, axis=axis) for axis in (0, 1)]
            losses = sum(sums) / 2 - jnp.diag(logits)
        else:
            negatives = jnp.where(is_negative, -jax.nn.log_sigmoid(-logits), 0)
            losses = jnp.sum(negatives, axis=1) - jax.nn.log_sigmoid(jnp.diag(logits))
        return jnp.sum(jnp.where(real, losses, 0)) / real.sum()

    expected = jax.value_and_grad(dense, argnums=(0, 1, 2, 3))(images, texts, SCALE, BIAS[name])
    comparison = Comparison(RULES[name], Exchange.RING, 2, masks_equal_texts=True)
    found = compare(comparison, mesh_of(8), images, texts, SCALE, BIAS[name], real=real, ids=ids)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    for x, y in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-6)


def test_a_pair_is_found_if_its_logit_is_above_all_others(arrays):
    images, texts = arrays["features"]
    texts = np.concatenate([images[:8], texts[8:]])
    _, _, pairs = compare(Comparison(Softmax), mesh_of(8), images, texts, SCALE, 0.0)
    logits = images @ texts.T
    np.testing.assert_array_equal(pairs.finds_text, logits.argmax(1) == np.arange(32))
    np.testing.assert_array_equal(pairs.finds_image, logits.argmax(0) == np.arange(32))
    # A model whose features are all equal finds nothing.
    _, _, pairs = compare(Comparison(Softmax), None, images * 0, texts * 0, SCALE, 0.0)
    assert not np.any(pairs.finds_text) and not np.any(pairs.finds_image)


def test_a_chunk_that_does_not_divide_the_texts_is_an_error(arrays):
    with pytest.raises(ValueError, match="chunk_size=3: must divide the 32 captions"):
        compare(Comparison(Softmax, chunk_size=3), None, *arrays["features"], SCALE, 0.0)


ROWS, DIM, CHUNK = 128, 64, 16
FEATURES = 4 * ROWS * DIM


def temporary_bytes(comparison, num_devices, *, gradient):
    """Returns the bytes of temporary arrays on a device with `ROWS` rows."""
    mesh, number = mesh_of(num_devices), num_devices * ROWS

    def mean(images, texts, real, ids):
        scale, bias = jnp.float32(SCALE), jnp.float32(0)
        return jnp.mean(pair_losses(comparison, images, texts, scale, bias, real, ids).losses)

    rows = NamedSharding(mesh, PartitionSpec("data"))
    shapes = [((number, DIM), "float32")] * 2 + [((number,), "bool"), ((number, 2), "uint32")]
    args = [jax.ShapeDtypeStruct(*each, sharding=rows) for each in shapes]
    with use_mesh(mesh):
        function = jax.grad(mean, argnums=(0, 1)) if gradient else mean
        compiled = jax.jit(function).lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("rule", RULES.values())
@pytest.mark.parametrize("gradient", [False, True])
def test_memory_does_not_grow_with_the_logits(rule, gradient):
    """Four times the devices and columns, at equal rows per device."""
    ring = [
        temporary_bytes(Comparison(rule, Exchange.RING, CHUNK), n, gradient=gradient)
        for n in (2, 8)
    ]
    gather = [
        temporary_bytes(Comparison(rule, Exchange.ALL_GATHER, CHUNK), n, gradient=gradient)
        for n in (2, 8)
    ]
    assert ring[1] == ring[0]
    # Texts, and in the backward pass their gradients; a few numbers per text come on top.
    texts = 6 * FEATURES * (2 if gradient else 1)
    assert 0.95 * texts < gather[1] - gather[0] < 1.3 * texts
    whole = temporary_bytes(Comparison(rule), 8, gradient=gradient)
    assert whole - gather[1] > 8 * 4 * ROWS * ROWS - 4 * ROWS * CHUNK - texts
