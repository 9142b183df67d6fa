"""Training of a small CLIP: micro-batches with all negatives, meshes, the metrics of a step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mm1_jax.batch import ImageTextBatch
from mm1_jax.config import config_class
from mm1_jax.models.clip import CLIP
from mm1_jax.models.vision_encoder import ClassToken
from mm1_jax.parallel.parallelism import Parallelism
from mm1_jax.train.contrastive import Contrastive, text_ids
from mm1_jax.train.contrastive_loss import SigmoidLoss, SoftmaxLoss
from mm1_jax.train.host_batches import HostBatch, LoadedRows
from mm1_jax.train.metrics import divide
from mm1_jax.train.optimizers.learning_rate import Schedule
from mm1_jax.train.optimizers.optimizer import Optimizer
from mm1_jax.train.pair_losses import Exchange
from mm1_jax.train.program import Program, ProgramSpec

TOWER = {"model_dim": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 12}
ROWS = 32


class GradientDescent(Optimizer):
    """Subtracts the gradient, so that parameters after a step reveal it."""

    @config_class
    class Config(Optimizer.Config):
        pass

    def direction(self, params):
        return optax.identity()


def draw_batch():
    rng = np.random.default_rng(0)
    tokens = np.zeros((ROWS, 5), np.int32)
    tokens[:, :4] = rng.integers(1, 20, (ROWS, 4))
    corpus_ids = rng.integers(0, 2, ROWS).astype(np.int32)
    corpus_ids[3] = -1
    return ImageTextBatch(
        images=rng.integers(0, 256, (ROWS, 8, 8, 3), dtype=np.uint8),
        tokens=tokens,
        lengths=rng.integers(2, 5, ROWS).astype(np.int32),
        row_seeds=rng.integers(0, 2**32, ROWS, dtype=np.uint32),
        corpus_ids=corpus_ids,
    )


def first_step(batch, loss, *, num_devices=1, number=1):
    """Returns the step's gradient of every parameter by path, and its metrics."""
    model = CLIP.default_config().set(features_dim=6, patch_dropout=0.5)
    if isinstance(loss, SigmoidLoss.Config):
        model.set(initial_bias=-3.0, initial_scale=10.0)
    model.vision_encoder.set(
        image_size=8, patch_size=4, class_token=ClassToken.default_config(), **TOWER
    )
    model.text_encoder.set(vocab_size=20, max_length=5, **TOWER)
    optimizer = GradientDescent.default_config().set(
        learning_rate=1.0, schedule=Schedule.CONSTANT, warmup_steps=0, decay_steps=1, clip=None
    )
    parallelism = Parallelism.default_config().set(gradient_accumulation=number)
    if num_devices == 8:
        parallelism.set(data=2, fsdp=2, model=2)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    objective = Contrastive(model, loss, shapes, num_corpora=2)
    spec = ProgramSpec(objective, optimizer=optimizer, parallelism=parallelism)
    program = Program(spec, jax.devices()[:num_devices])
    state = program.first_state(jax.random.key(0))
    before = jax.device_get(state.params)
    placed = program.place(HostBatch(ROWS, (LoadedRows(range(ROWS), batch),)))
    after, metrics = program.compile()(state, placed)
    gradient = jax.tree.map(np.subtract, before, jax.device_get(after.params))
    return gradient, divide(metrics)


@pytest.fixture(scope="module")
def whole_batches():
    """The first step of each loss on one device, without micro-batches."""
    return {
        loss: first_step(draw_batch(), loss.default_config()) for loss in (SoftmaxLoss, SigmoidLoss)
    }


@pytest.mark.parametrize(
    ("loss", "number", "exchange"),
    [(SoftmaxLoss, 2, Exchange.ALL_GATHER), (SigmoidLoss, 4, Exchange.RING)],
)
def test_micro_batches_on_eight_devices_keep_all_negatives(loss, number, exchange, whole_batches):
    gradient, metrics = whole_batches[loss]
    assert np.abs(gradient["logit_scale"]) > 1e-3
    cfg = loss.default_config().set(exchange=exchange, chunk_size=2)
    found, same = first_step(draw_batch(), cfg, num_devices=8, number=number)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(gradient), strict=True
    ):
        tolerance = 1e-5 * max(np.abs(y).max(), 0.1)
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance, err_msg=jax.tree_util.keystr(path))
    assert same.keys() == metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(same[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_step_reports_chance_beside_its_loss(whole_batches):
    _, metrics = whole_batches[SoftmaxLoss]
    num_rows = ROWS - 1
    assert metrics["images"] == num_rows
    assert metrics["chance_loss"] == pytest.approx(np.log(num_rows))
    assert metrics["logit_scale"] == pytest.approx(1 / 0.07)
    assert 0 <= metrics["image_to_text_accuracy"] < 0.3
    corpus_ids = draw_batch().corpus_ids
    counts = np.bincount(corpus_ids[corpus_ids >= 0])
    assert counts @ metrics["corpus_loss"] / num_rows == pytest.approx(metrics["loss"], rel=1e-5)


def test_chance_is_the_loss_of_equal_logits_at_the_bias_of_the_batch():
    model = CLIP.default_config()
    SigmoidLoss.resolve_bias(model, 256)
    assert model.initial_bias == pytest.approx(-5.54, abs=0.01)
    positive = np.log1p(np.exp(-model.initial_bias))
    negative = 255 * np.log1p(np.exp(model.initial_bias))
    assert SigmoidLoss.chance(jnp.float32(256)) == pytest.approx(positive + negative, rel=1e-6)
    with pytest.raises(ValueError, match="initial_bias=-5.5.* does not depend on a bias"):
        SoftmaxLoss.resolve_bias(model, 256)


def test_equal_texts_have_equal_ids_and_padding_does_not_count():
    batch = draw_batch()
    tokens = batch.tokens.copy()
    tokens[1], batch.lengths[1] = tokens[0], batch.lengths[0]
    tokens[1, batch.lengths[0] :] = 7
    object.__setattr__(batch, "tokens", tokens)
    ids = np.asarray(text_ids(jax.tree.map(jnp.asarray, batch)))
    assert len(np.unique(ids, axis=0)) == ROWS - 1
    np.testing.assert_array_equal(ids[0], ids[1])
