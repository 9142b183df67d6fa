"""Parts that return wrong results are detected before training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.pretrain import mm1_tiny
from mm1_jax.config import Configurable, config_class
from mm1_jax.experiment import Experiment
from mm1_jax.layers.attention import Attention
from mm1_jax.layers.embedding import Embedding
from mm1_jax.layers.feed_forward import GatedFeedForward
from mm1_jax.layers.norm import LayerNorm, RMSNorm
from mm1_jax.layers.position_embedding import PositionEmbedding
from mm1_jax.layers.transformer import TransformerBlock
from mm1_jax.models.connectors.average_pooling import AveragePooling
from mm1_jax.models.vision_encoder import VisionEncoder
from mm1_jax.train.contracts import check_learning_rate
from mm1_jax.train.loss import Loss
from mm1_jax.train.optimizers.adamw import AdamW


@pytest.fixture
def cfg():
    cfg = mm1_tiny()
    cfg.model.vision_encoder.num_layers = cfg.model.decoder.num_layers = 1
    cfg.model.connector = AveragePooling.default_config().set(num_image_tokens=4)
    cfg.input.set(batch_size=1, max_sequence_length=16, max_images=2)
    return Experiment.resolve(cfg)


def _replace(cfg, path, cls):
    """Replaces the part at `path` by another class with the same fields."""
    old = cfg.get_recursively(path.split("."))
    fields = {name: value for name, value in old.items() if name != "klass"}
    cfg.set_recursively(path.split("."), value=cls.default_config().set(**fields))


def _changed(base, change):
    """A subclass of a part that applies `change` to its result."""

    class Part(base):
        def __call__(self, *args, **kwargs):
            return change(super().__call__(*args, **kwargs))

    return Part


def _first(change):
    return lambda result: (change(result[0]), *result[1:])


LAYER = "model.decoder.stack.layer"

WRONG_SHAPES = [
    # The merge would gather from a connector of half as many tokens without an error.
    ("model.connector", AveragePooling, lambda y: y[:, :2], "[2, 2, 128]", "[2, 4, 128]"),
    ("model.connector", AveragePooling, lambda y: y[..., :1], "[2, 4, 1]", "[2, 4, 128]"),
    ("model.connector", AveragePooling, lambda y: y[0], "[4, 128]", "[2, 4, 128]"),
    ("model.connector", AveragePooling, lambda y: y.astype("bfloat16"), "bfloat16", "float32"),
    ("model.connector", AveragePooling, lambda y: None, "None", "[2, 4, 128]"),
    ("model.vision_encoder", VisionEncoder, lambda y: y[:, :1], "[2, 1, 64]", "[2, 4, 64]"),
    ("model.vision_encoder", VisionEncoder, lambda y: y[..., :8], "[2, 4, 8]", "[2, 4, 64]"),
    (
        "model.vision_encoder.positions",
        PositionEmbedding,
        lambda y: y[:, :1],
        "[2, 1, 2, 64]",
        "[2, 2, 2, 64]",
    ),
    ("model.vision_encoder.final_norm", LayerNorm, lambda y: y[:1], "[1, 4, 64]", "[2, 4, 64]"),
    (f"{LAYER}.attention", Attention, _first(lambda y: y[..., :1]), "[1, 16, 1]", "[1, 16, 128]"),
    (f"{LAYER}.attention", Attention, lambda result: result[0], "[1, 16, 128]", "a tuple (x"),
    (f"{LAYER}.feed_forward", GatedFeedForward, lambda y: y[:, :1], "[1, 1, 128]", "[1, 16, 128]"),
    (f"{LAYER}.norm", RMSNorm, lambda y: y[..., :1], "[1, 16, 1]", "[1, 16, 128]"),
    (LAYER, TransformerBlock, _first(lambda y: y[..., :64]), "[1, 16, 64]", "[1, 16, 128]"),
    ("model.decoder.norm", RMSNorm, lambda y: y[..., :1], "[1, 16, 1]", "[1, 16, 128]"),
    ("model.decoder.embedding", Embedding, lambda y: y[..., :1], "[1, 16, 1]", "[1, 16, 128]"),
    ("trainer.loss", Loss, _first(lambda x: x[None]), "[1]", "float32[]"),
    ("trainer.loss", Loss, lambda result: result[0], "float32[]", "a tuple (total, metrics)"),
    ("trainer.loss", Loss, lambda result: (result[0], {}), "metrics {}", "'corpus_loss'"),
]


@pytest.mark.parametrize(("path", "base", "change", "got", "expected"), WRONG_SHAPES)
def test_a_part_that_returns_a_wrong_shape_is_named_with_its_field(
    cfg, path, base, change, got, expected
):
    _replace(cfg, path, _changed(base, change))
    with pytest.raises(ValueError) as error:
        Experiment.check(cfg)
    said = str(error.value)
    assert said.startswith(f"{path}: Part returned ") and said.index(got) < said.index("expected")
    assert expected in said.partition("expected")[2]


def test_the_existing_parts_keep_their_contracts(cfg):
    Experiment.check(cfg)


def _direction(init, update):
    class Part(AdamW):
        def direction(self, params):
            return optax.GradientTransformation(init, update)

    return Part


def _nothing(params):
    return optax.EmptyState()


WRONG_OPTIMIZERS = [
    (
        _nothing,
        lambda g, s, p=None: (jax.tree.map(jnp.mean, g), s),
        "direction returned float32[] ",
    ),
    (
        _nothing,
        lambda g, s, p=None: (optax.tree_utils.tree_norm(g), s),
        "direction returned nothing",
    ),
    (
        _nothing,
        lambda g, s, p=None: (jax.tree.map(lambda x: x.astype("bfloat16"), g), s),
        "direction returned bfloat16",
    ),
    (
        lambda params: jnp.zeros(1),
        lambda g, s, p=None: (g, jnp.concatenate([s, s])),
        "Part changes its state in a step",
    ),
]


@pytest.mark.parametrize(("init", "update", "said"), WRONG_OPTIMIZERS)
def test_an_optimizer_must_return_a_direction_like_the_gradient(cfg, init, update, said):
    _replace(cfg, "trainer.optimizer", _direction(init, update))
    with pytest.raises(ValueError, match="^trainer.optimizer: Part") as error:
        Experiment.check(cfg)
    assert said in str(error.value)


def test_an_optimizer_without_a_direction_is_named(cfg):
    class Nothing(AdamW):
        def direction(self, params):
            pass

    _replace(cfg, "trainer.optimizer", Nothing)
    with pytest.raises(ValueError, match="Nothing.direction returned None, expected an optax"):
        Experiment.check(cfg)


def test_a_schedule_must_return_rates(cfg):
    class Shifted(AdamW):
        def learning_rate(self, step):
            return super().learning_rate(step) - 1e-3

    class Undefined(AdamW):
        def learning_rate(self, step):
            return jnp.log(super().learning_rate(step) * 0 - 1)

    check_learning_rate(cfg.trainer.optimizer.instantiate(), 100)
    for cls, value in ((Shifted, "-0.000"), (Undefined, "nan")):
        _replace(cfg, "trainer.optimizer", cls)
        with pytest.raises(ValueError, match=f"{cls.__name__}.learning_rate gives {value}"):
            check_learning_rate(cfg.trainer.optimizer.instantiate(), 100)


def test_an_error_inside_a_part_is_one_sentence_with_its_path(cfg):
    _replace(cfg, "model.connector", _changed(AveragePooling, lambda y: y @ np.ones((3, 3), "f4")))
    with pytest.raises(ValueError, match=r"cannot be traced: TypeError at .*test_contracts.py:\d+"):
        Experiment.check(cfg)


def test_a_constructor_with_a_missing_argument_is_named(cfg):
    class NoKeys(AveragePooling):
        def __init__(self, cfg):
            pass

    _replace(cfg, "model.connector", NoKeys)
    with pytest.raises(ValueError, match=r"NoKeys.__init__ is called as \(cfg, rngs=...\)"):
        Experiment.check(cfg)


class NoTokens(Configurable):
    @config_class
    class Config(Configurable.Config):
        pass


def test_a_config_of_another_kind_of_part_is_named():
    cfg = mm1_tiny()
    cfg.model.connector = NoTokens.default_config()
    said = "model.connector is a config of NoTokens, which has no num_image_tokens; expected that"
    with pytest.raises(ValueError, match=said):
        Experiment.resolve(cfg)
