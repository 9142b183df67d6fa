import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from make_arrays import C_ABSTRACTORS, c_abstractor, load
from parity import assert_equal, with_weights
from torch_modules import c_abstractor_weights

from mm1_jax.config import maybe_set_config
from mm1_jax.models.connectors.attention_pooling import AttentionPooling
from mm1_jax.models.connectors.average_pooling import AveragePooling
from mm1_jax.models.connectors.base import adaptive_pool
from mm1_jax.models.connectors.c_abstractor import CAbstractor
from mm1_jax.models.connectors.mlp import MLP
from mm1_jax.parallel.rematerialisation import Remat

INPUT_DIM, OUTPUT_DIM, GRID = 12, 10, 5

CONNECTORS = {
    "average_pooling": AveragePooling.default_config(),
    "attention_pooling": AttentionPooling.default_config().set(
        num_layers=2, num_heads=2, model_dim=8, hidden_dim=16
    ),
    "mlp": MLP.default_config(),
    "c_abstractor": CAbstractor.default_config().set(depth=2, hidden_dim=8),
}


def sized(cfg, num_image_tokens):
    sizes = {"input_dim": INPUT_DIM, "output_dim": OUTPUT_DIM, "grid_size": GRID}
    return maybe_set_config(cfg.clone(num_image_tokens=num_image_tokens), **sizes)


@pytest.fixture(params=CONNECTORS.values(), ids=CONNECTORS.keys())
def cfg(request):
    return request.param.clone()


def draw(*shape):
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)


@pytest.fixture
def image_features():
    return draw(2, GRID**2, INPUT_DIM)


def test_a_connector_outputs_num_image_tokens(cfg, build, image_features):
    for num_image_tokens in (1, 4, 9, 36):
        connector = build(sized(cfg, num_image_tokens))
        result = jax.eval_shape(connector, image_features)
        assert result.shape == (2, num_image_tokens, OUTPUT_DIM)


def test_a_connector_accepts_any_square_grid(cfg, build, call):
    connector = build(sized(cfg, 4))
    for grid in (2, 8):
        features = jnp.ones((1, grid**2, INPUT_DIM))
        assert jnp.isfinite(call(connector, features)).all()


def test_images_are_independent_of_each_other(cfg, build, call, image_features):
    connector = build(sized(cfg, 4))
    alone, together = call(connector, image_features[1:]), call(connector, image_features)
    np.testing.assert_allclose(together[1:], alone, rtol=1e-5, atol=1e-5)


def test_a_connector_computes_in_the_dtype_of_its_parameters(cfg, build, call, image_features):
    connector = build(sized(cfg, 4))
    graphdef, params = nnx.split(connector)
    low = nnx.merge(graphdef, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
    result = call(low, image_features.astype(jnp.bfloat16))
    assert result.dtype == jnp.bfloat16
    expected = call(connector, image_features)
    assert jnp.abs(result - expected).max() < 0.1 * jnp.abs(expected).max()


@pytest.mark.parametrize("name", ["average_pooling", "c_abstractor"])
def test_a_count_that_is_not_a_square_is_rejected_with_the_nearest_squares(name, build):
    with pytest.raises(ValueError, match=r"connector\.num_image_tokens=140.*121 or 144"):
        build(sized(CONNECTORS[name], 140))


@pytest.mark.parametrize("name", ["average_pooling", "c_abstractor"])
def test_patches_that_do_not_form_a_square_are_rejected(name, build):
    connector = build(sized(CONNECTORS[name], 4))
    with pytest.raises(ValueError, match=r"patches per image=24.*16 or 25"):
        connector(jnp.zeros((1, 24, INPUT_DIM)))


def test_attention_pooling_accepts_any_count_and_any_order_of_patches(build, call, image_features):
    connector = build(sized(CONNECTORS["attention_pooling"], 7))
    expected = call(connector, image_features)
    assert expected.shape == (2, 7, OUTPUT_DIM)
    backwards = call(connector, image_features[:, ::-1])
    np.testing.assert_allclose(backwards, expected, rtol=1e-4, atol=1e-5)


def test_rematerialized_convolutions_have_the_same_gradient(build, image_features):
    cfg = sized(CONNECTORS["c_abstractor"], 4)

    def gradient(remat):
        connector = build(cfg.set(remat=remat))
        return jax.jit(jax.grad(lambda x: jnp.sum(connector(x) ** 2)))(image_features)

    expected = gradient(Remat.NONE)
    assert jnp.any(expected != 0)
    np.testing.assert_allclose(gradient(Remat.FULL), expected, rtol=1e-4, atol=1e-4)


def test_the_compiler_cannot_undo_the_rematerialization_of_convolutions(build, image_features):
    def equations(remat):
        connector = build(sized(CONNECTORS["c_abstractor"], 4).set(remat=remat))
        return jax.make_jaxpr(connector)(image_features).eqns

    barriers = [e.params["prevent_cse"] for e in equations(Remat.FULL) if "prevent_cse" in e.params]
    assert barriers == [True] * 4
    assert not any("prevent_cse" in e.params for e in equations(Remat.NONE))


@pytest.mark.parametrize(
    ("size", "bins"), [(27, 12), (24, 12), (16, 12), (27, 8), (5, 5), (3, 4), (4, 1)]
)
def test_adaptive_pooling_equals_torch(size, bins):
    x = draw(2, size, size, 3)
    expected = F.adaptive_avg_pool2d(to_torch(x).permute(0, 3, 1, 2), bins).permute(0, 2, 3, 1)
    np.testing.assert_allclose(adaptive_pool(x, bins), expected, rtol=1e-5, atol=1e-6)


def of_honeybee(name: str, arrays: dict) -> tuple:
    """Returns our config of a reference's sizes, and its weights, inputs and outputs."""
    inputs, hidden, outputs, grid, side, depth, mlp_depth = C_ABSTRACTORS[name]
    cfg = CAbstractor.default_config().set(
        input_dim=inputs,
        output_dim=outputs,
        grid_size=grid,
        num_image_tokens=side**2,
        hidden_dim=hidden,
        depth=depth,
        mlp_depth=mlp_depth,
    )
    weights = {path.partition("/")[2]: value for path, value in arrays.items() if "/" in path}
    return cfg, c_abstractor_weights(weights), arrays["inputs"], torch.tensor(arrays["outputs"])


@pytest.mark.parametrize("source", ["stored", "live"])
@pytest.mark.parametrize("name", C_ABSTRACTORS)
def test_c_abstractor_equals_honeybees_with_timm_blocks(name, source, call):
    if source == "live":
        pytest.importorskip("timm")
    arrays = load(name) if source == "stored" else c_abstractor(name)
    cfg, weights, inputs, expected = of_honeybee(name, arrays)
    assert_equal(call(with_weights(cfg, weights), inputs), expected)


def test_a_wrong_eps_would_be_detected(call):
    cfg, weights, inputs, expected = of_honeybee("c_abstractor", load("c_abstractor"))
    cfg.norm.eps = 1e-6
    found = np.asarray(call(with_weights(cfg, weights), inputs))
    assert np.abs(found - expected.numpy()).max() > 1e-4 * expected.abs().max()


def to_torch(x):
    return torch.from_numpy(np.array(x))


def test_squeeze_has_a_quarter_of_the_input_channels_of_the_block(build):
    first, second = build(sized(CONNECTORS["c_abstractor"], 4)).stage_1
    assert first.squeeze_excite.squeeze.kernel.shape == (8, INPUT_DIM // 4)
    assert second.squeeze_excite.squeeze.kernel.shape == (8, 2)
