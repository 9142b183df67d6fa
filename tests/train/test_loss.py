import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from mm1_jax.train.loss import Loss, Totals
from mm1_jax.train.metrics import add, divide

VOCAB_SIZE = 32


class Identity(nnx.Module):
    """An output layer for hidden states that are already logits."""

    def attend(self, hidden):
        return hidden


@pytest.fixture
def logits(prng_key, batch):
    return 3 * jax.random.normal(prng_key, (*batch.tokens.shape, VOCAB_SIZE))


def evaluate(logits, batch, router=None, totals=None, **coefficients):
    coefficients = {"z_loss": 0.0, **coefficients}
    loss = Loss.default_config().set(**coefficients).instantiate()
    batch = jax.tree.map(jnp.asarray, batch)
    return loss(logits, Identity(), batch, router, num_corpora=2, totals=totals)


def test_cross_entropy_equals_torchs(logits, batch):
    targets = torch.from_numpy(np.where(batch.loss_mask, batch.targets, -100)).long()
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(np.array(logits)).reshape(-1, VOCAB_SIZE), targets.reshape(-1)
    )
    total, metrics = evaluate(logits, batch)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    np.testing.assert_allclose(divide(metrics)["loss"], expected, rtol=1e-6)


def test_z_loss_is_the_mean_square_of_the_log_normalizer(logits, batch):
    without, _ = evaluate(logits, batch)
    total, metrics = evaluate(logits, batch, z_loss=0.5)
    log_normalizer = torch.logsumexp(torch.from_numpy(np.array(logits)), dim=-1).numpy()
    expected = np.mean(log_normalizer[batch.loss_mask] ** 2)
    np.testing.assert_allclose(divide(metrics)["z_loss"], expected, rtol=1e-6)
    np.testing.assert_allclose(total - without, 0.5 * expected, rtol=1e-5)


def test_losses_of_half_batches_add_up_to_that_of_the_whole(logits, batch):
    # Uneven on purpose: the second half has a single target.
    mask = batch.loss_mask.copy()
    mask[2:] = False
    mask[3, 1] = True
    batch = dataclasses.replace(batch, loss_mask=mask)
    halves = []
    for rows in (slice(0, 2), slice(2, 4)):
        fields = {
            field.name: getattr(batch, field.name)[rows]
            for field in dataclasses.fields(batch)
            if field.name != "images"
        }
        half = dataclasses.replace(batch, **fields)
        halves.append(evaluate(logits[rows], half)[1])
    whole, parts = divide(evaluate(logits, batch)[1]), divide(add(*halves))
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-6, err_msg=name)


def test_unscored_targets_have_no_effect(logits, batch):
    changed = np.where(batch.loss_mask, batch.targets, (batch.targets + 5) % VOCAB_SIZE)
    assert (changed != batch.targets).any()
    before = jax.value_and_grad(lambda x: evaluate(x, batch)[0])(logits)
    batch = dataclasses.replace(batch, targets=changed)
    value, gradient = jax.value_and_grad(lambda x: evaluate(x, batch)[0])(logits)
    assert value == before[0]
    np.testing.assert_array_equal(gradient, before[1])
    np.testing.assert_array_equal(np.asarray(gradient)[~batch.loss_mask], 0)


def test_a_batch_without_targets_has_no_loss_and_no_gradient(logits, batch):
    batch = dataclasses.replace(batch, loss_mask=np.zeros_like(batch.loss_mask))
    value, gradient = jax.value_and_grad(lambda x: evaluate(x, batch)[0])(logits)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_losses_per_corpus_add_up_to_the_loss(logits, batch):
    metrics = evaluate(logits, batch)[1]
    corpora, whole = metrics["corpus_loss"], metrics["loss"]
    np.testing.assert_array_equal(
        corpora.weight, [(batch.loss_mask & (batch.corpus_ids == c)).sum() for c in (0, 1)]
    )
    np.testing.assert_allclose(corpora.total.sum(), whole.total, rtol=1e-6)
    only_first = dataclasses.replace(batch, loss_mask=batch.loss_mask & (batch.corpus_ids == 0))
    first = divide(evaluate(logits, only_first)[1])["loss"]
    np.testing.assert_allclose(divide(metrics)["corpus_loss"][0], first, rtol=1e-6)


def test_the_loss_of_bfloat16_logits_is_computed_in_float32(logits, batch):
    logits = logits.astype(jnp.bfloat16)
    exact, _ = evaluate(logits.astype(jnp.float32), batch)
    assert evaluate(logits, batch)[0] == exact


def test_router_losses_are_means_over_real_tokens_and_layers(logits, batch):
    router = SimpleNamespace(
        load_balance=jnp.array([12.0, 18.0]),
        z=jnp.array([3.0, 9.0]),
        weight=jnp.array([10.0, 10.0]),
        expert_load=jnp.array([[15.0, 5.0], [10.0, 10.0]]),
        dropped=jnp.array([1.0, 3.0]),
    )
    plain, _ = evaluate(logits, batch)
    total, metrics = evaluate(logits, batch, router, load_balance_loss=0.1, router_z_loss=0.01)
    np.testing.assert_allclose(total - plain, 0.1 * 1.5 + 0.01 * 0.6, rtol=1e-5)
    assert divide(metrics)["dropped_share"] == 0.1
    # A micro-batch with the scored targets of all and half of the real tokens of the whole batch.
    whole = Totals(jnp.sum(batch.loss_mask, dtype=jnp.float32), jnp.float32(20))
    half, _ = evaluate(logits, batch, router, whole, load_balance_loss=0.1, router_z_loss=0.01)
    np.testing.assert_allclose(half - plain, 0.5 * (0.1 * 1.5 + 0.01 * 0.6), rtol=1e-5)


def test_chunked_logits_give_the_same_loss_and_gradient(logits, batch):
    def value_and_gradient(**fields):
        return jax.value_and_grad(lambda x: evaluate(x, batch, z_loss=0.1, **fields)[0])(logits)

    value, gradient = value_and_gradient()
    for chunk_length in (1, 2, 3, 6, 100):
        chunked = value_and_gradient(chunk_length=chunk_length)
        np.testing.assert_allclose(chunked[0], value, rtol=1e-6)
        np.testing.assert_allclose(chunked[1], gradient, rtol=1e-5, atol=1e-8)
    with pytest.raises(ValueError, match="chunk_length=4: must divide the 6 positions"):
        value_and_gradient(chunk_length=4)
