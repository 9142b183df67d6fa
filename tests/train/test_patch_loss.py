"""Losses of AIM and AIMv2, compared with a reference written from the recipe of L3M."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from patch_models import LENGTH, NUM_PATCHES, NUM_PIXELS, ROWS, VOCAB_SIZE, draw_batch

from mm1_jax.models.aim import AIMv2Output, PatchPredictions, draw_prefix_lengths
from mm1_jax.train.metrics import add, divide
from mm1_jax.train.patch_loss import AIMLoss, AIMv2Loss
from mm1_jax.train.patch_prediction import patch_totals

NUM_CORPORA = 2


class Identity(nnx.Module):
    """An output layer for hidden states that are already logits."""

    def attend(self, hidden):
        return hidden


@dataclasses.dataclass
class Drawn:
    """A model with drawn outputs; its hidden states are already logits."""

    predictions: jax.Array
    targets: jax.Array
    logits: jax.Array | None = None

    def __call__(self, batch):
        prefix_lengths = draw_prefix_lengths(batch.row_seeds, NUM_PATCHES)
        patches = PatchPredictions(self.predictions, self.targets, prefix_lengths)
        return patches if self.logits is None else AIMv2Output(patches, self.logits)

    def output_layer(self):
        return Identity()


jax.tree_util.register_dataclass(Drawn)


@pytest.fixture
def batch():
    return draw_batch()


def prefixes(batch):
    return np.asarray(_draw(batch.row_seeds))


_draw = jax.jit(functools.partial(draw_prefix_lengths, num_patches=NUM_PATCHES))


def draw_model(name):
    rng = np.random.default_rng(1)
    predictions, targets = rng.standard_normal((2, ROWS, NUM_PATCHES, NUM_PIXELS), np.float32)
    logits = rng.standard_normal((ROWS, LENGTH, VOCAB_SIZE), np.float32)
    return Drawn(predictions, targets, None if name == "aim" else logits)


def pixel_loss(model, batch, corpus=None):
    """The mean squared error of patches behind the prefix, target by target."""
    errors = []
    for row in range(ROWS):
        if batch.corpus_ids[row] < 0 or corpus not in (None, batch.corpus_ids[row]):
            continue
        for i in range(NUM_PATCHES - 1):
            if i + 1 >= prefixes(batch)[row]:
                difference = model.predictions[row, i] - model.targets[row, i + 1]
                errors.append(np.mean(np.square(difference.astype(np.float64))))
    return np.mean(errors)


def text_loss(model, batch):
    targets = np.full((ROWS, LENGTH), -100)
    for row in range(ROWS):
        if batch.corpus_ids[row] >= 0:
            targets[row, : batch.lengths[row] - 1] = batch.tokens[row, 1 : batch.lengths[row]]
    logits = torch.from_numpy(np.array(model.logits)).reshape(-1, VOCAB_SIZE)
    return torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets).reshape(-1)).item()


LOSSES = {
    "aim": AIMLoss.default_config(),
    "aimv2": AIMv2Loss.default_config(),
    "aimv2 in chunks": AIMv2Loss.default_config().set(chunk_length=3),
}


@functools.partial(jax.jit, static_argnums=0)
def evaluate(name, model, batch, totals=None):
    """Returns the loss, its metrics, and its gradient with respect to the model's outputs."""
    loss = LOSSES[name].instantiate()
    (total, metrics), gradient = jax.value_and_grad(
        lambda model: loss(model, batch, num_corpora=NUM_CORPORA, totals=totals), has_aux=True
    )(model)
    return total, metrics, gradient


def test_the_loss_of_aim_is_the_mean_over_patches_behind_the_prefix(batch):
    model = draw_model("aim")
    total, metrics, _ = evaluate("aim", model, batch)
    np.testing.assert_allclose(total, pixel_loss(model, batch), rtol=1e-6)
    metrics = divide(metrics)
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)
    expected = [pixel_loss(model, batch, corpus) for corpus in range(NUM_CORPORA)]
    np.testing.assert_allclose(metrics["corpus_loss"], expected, rtol=1e-6)
    share = prefixes(batch)[batch.corpus_ids >= 0].mean() / NUM_PATCHES
    np.testing.assert_allclose(metrics["prefix_share"], share, rtol=1e-6)


@pytest.mark.parametrize("name", ["aimv2", "aimv2 in chunks"])
def test_the_loss_of_aimv2_is_the_weighted_sum_of_two_means(batch, name):
    model = draw_model(name)
    total, metrics, _ = evaluate(name, model, batch)
    pixels, text = pixel_loss(model, batch), text_loss(model, batch)
    np.testing.assert_allclose(total, 0.4 * pixels + text, rtol=1e-6)
    divided = divide(metrics)
    np.testing.assert_allclose(divided["loss"], total, rtol=1e-6)
    np.testing.assert_allclose(divided["pixel_loss"], pixels, rtol=1e-6)
    np.testing.assert_allclose(divided["text_loss"], text, rtol=1e-6)
    corpora = metrics["corpus_loss"]
    np.testing.assert_array_equal(corpora.weight, [3, 4])
    np.testing.assert_allclose(corpora.total.sum() / corpora.weight.sum(), total, rtol=1e-6)


@pytest.mark.parametrize("name", ["aim", "aimv2"])
def test_losses_and_gradients_of_parts_add_up_to_those_of_the_batch(batch, name):
    """Prefixes and texts of the parts differ in length, and the first holds an empty row."""
    model = draw_model(name)
    totals = jax.jit(patch_totals, static_argnums=1)(batch, NUM_PATCHES)
    halves = []
    for rows in (slice(0, ROWS // 2), slice(ROWS // 2, ROWS)):
        part = jax.tree.map(lambda x, rows=rows: x[rows], (model, batch))
        halves.append(evaluate(name, *part, totals))
    total, metrics, gradient = evaluate(name, model, batch)
    np.testing.assert_allclose(halves[0][0] + halves[1][0], total, rtol=1e-6)
    parts = jax.tree.map(lambda *x: np.concatenate(x), halves[0][2], halves[1][2])
    for found, expected in zip(jax.tree.leaves(parts), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)
    whole, parts = divide(metrics), divide(add(halves[0][1], halves[1][1]))
    for metric in whole:
        np.testing.assert_allclose(parts[metric], whole[metric], rtol=1e-6, err_msg=metric)


@pytest.mark.parametrize("name", ["aim", "aimv2"])
def test_only_predictions_of_scored_targets_have_a_gradient(batch, name):
    _, _, gradient = evaluate(name, draw_model(name), batch)
    i, is_used = np.arange(NUM_PATCHES), batch.corpus_ids >= 0
    scored = (i[None] + 1 >= prefixes(batch)[:, None]) & (i < NUM_PATCHES - 1) & is_used[:, None]
    np.testing.assert_array_equal((np.asarray(gradient.predictions) != 0).all(-1), scored)
    np.testing.assert_array_equal((np.asarray(gradient.predictions) != 0).any(-1), scored)
    if name == "aimv2":
        scored = (np.arange(1, LENGTH + 1)[None] < batch.lengths[:, None]) & is_used[:, None]
        np.testing.assert_array_equal((np.asarray(gradient.logits) != 0).any(-1), scored)


@pytest.mark.parametrize("name", ["aim", "aimv2"])
def test_a_batch_without_records_has_no_loss_and_no_gradient(batch, name):
    batch = dataclasses.replace(batch, corpus_ids=np.full_like(batch.corpus_ids, -1))
    total, _, gradient = evaluate(name, draw_model(name), batch)
    assert total == 0 and not any(np.any(x) for x in jax.tree.leaves(gradient))
