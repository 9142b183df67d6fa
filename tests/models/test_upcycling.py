"""An upcycled sparse model computes the same as its dense source."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm1_jax.layers.moe import Capacity, Dropless, MoE
from mm1_jax.layers.parameter_paths import map_with_paths, parameter_paths
from mm1_jax.models.decoder import Decoder
from mm1_jax.models.upcycling import upcycle

ROWS, LENGTH, LAYERS, DIM, EXPERTS = 2, 12, 4, 8, 4
AMPLE = Capacity.default_config().set(capacity_factor=float(EXPERTS))


@pytest.fixture
def decoder(build):
    """Makes the graph definition and random parameters of a decoder for a seed."""

    def make(seed, num_layers=LAYERS, **fields):
        cfg = Decoder.default_config().set(
            vocab_size=16, model_dim=DIM, num_layers=num_layers, num_heads=2, hidden_dim=12
        )
        graphdef, params = nnx.split(build(cfg.set(**fields)))
        generator = np.random.default_rng(seed)
        return graphdef, jax.tree.map(
            lambda x: jnp.asarray(0.4 * generator.standard_normal(x.shape), x.dtype),
            nnx.to_pure_dict(params),
        )

    return make


def sparse_fields(experts_per_token=2, dispatch=None, moe_every=2):
    moe = MoE.default_config().set(num_experts=EXPERTS, experts_per_token=experts_per_token)
    if dispatch is not None:
        moe.dispatch = dispatch
    return {"moe": moe, "moe_every": moe_every}


def states(graphdef, params):
    """Returns the hidden states of non-padding positions, and the router statistics."""
    generator = np.random.default_rng(5)
    embeddings = jnp.asarray(generator.standard_normal((ROWS, LENGTH, DIM)), jnp.float32)
    positions = jnp.broadcast_to(jnp.arange(LENGTH, dtype=jnp.int32), (ROWS, LENGTH))
    segment_ids = jnp.ones_like(positions).at[0, 9:].set(0)

    @jax.jit
    def run(params):
        model = nnx.merge(graphdef, params)
        return model(embeddings, positions=positions, segment_ids=segment_ids)

    output = run(params)
    return output.hidden[segment_ids > 0], output.router


@pytest.mark.parametrize(
    ("experts_per_token", "dispatch", "moe_every"),
    [(1, AMPLE, 1), (2, Dropless.default_config(), 2), (2, AMPLE, 4), (3, None, 2)],
)
def test_the_upcycled_model_computes_the_same_as_the_dense_one(
    decoder, experts_per_token, dispatch, moe_every
):
    dense = decoder(1)
    graphdef, fresh = decoder(2, **sparse_fields(experts_per_token, dispatch, moe_every))
    expected, _ = states(*dense)
    # The parameters matter: a fresh sparse model computes something else.
    assert jnp.abs(states(graphdef, fresh)[0] - expected).max() > 0.1
    found, router = states(graphdef, upcycle(dense[1], fresh))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert router.expert_load.shape == (LAYERS // moe_every, EXPERTS)
    assert jnp.sum(router.dropped) == 0


def test_upcycling_copies_everything_but_the_routers(decoder):
    (_, dense), (_, fresh) = decoder(1), decoder(2, **sparse_fields())
    result = jax.jit(upcycle)(dense, fresh)
    assert jax.tree.map(jnp.shape, result) == jax.tree.map(jnp.shape, fresh)
    feed_forward = result["stack"]["last_layer"]["feed_forward"]
    np.testing.assert_array_equal(
        feed_forward["router"], fresh["stack"]["last_layer"]["feed_forward"]["router"]
    )
    # Layers 1 and 3 are sparse.
    for expert in range(EXPERTS):
        np.testing.assert_array_equal(
            feed_forward["experts"]["up"][:, expert],
            dense["stack"]["layer"]["feed_forward"]["up"]["kernel"][1::2],
        )
    np.testing.assert_array_equal(
        result["stack"]["layer"]["feed_forward"]["up"]["kernel"][:, 0],
        dense["stack"]["layer"]["feed_forward"]["up"]["kernel"][::2],
    )
    for name in ("embedding", "head", "norm"):
        for x, y in zip(jax.tree.leaves(result[name]), jax.tree.leaves(dense[name]), strict=True):
            np.testing.assert_array_equal(x, y)


def test_upcycling_keeps_an_encoder_and_a_model_that_is_already_sparse(decoder):
    (_, dense), (_, fresh) = decoder(1), decoder(2, **sparse_fields())
    encoder = {"patches": {"kernel": jnp.ones((3, 2))}}
    whole = upcycle(
        {"decoder": dense, "vision_encoder": encoder},
        {"decoder": fresh, "vision_encoder": jax.tree.map(jnp.zeros_like, encoder)},
    )
    np.testing.assert_array_equal(whole["vision_encoder"]["patches"]["kernel"], 1)
    assert parameter_paths(whole["decoder"]) == parameter_paths(fresh)
    again = upcycle(whole["decoder"], fresh)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, again, whole["decoder"]))


def test_incompatible_models_are_rejected(decoder):
    (_, dense), (_, fresh) = decoder(1), decoder(2, **sparse_fields())
    with pytest.raises(ValueError, match="head in only one of the two models"):
        upcycle({k: v for k, v in dense.items() if k != "head"}, fresh)
    with pytest.raises(ValueError, match="stack has 6 layers in the dense model and 4 in"):
        upcycle(decoder(1, num_layers=6)[1], fresh)
    wider = map_with_paths(lambda path, x: x[:4] if path.startswith("head") else x, dense)
    with pytest.raises(ValueError, match=r"head/weight is \[4, 8\] in the dense model and \[16, 8"):
        upcycle(wider, fresh)
    slim = map_with_paths(lambda path, x: x[..., :7] if path.endswith("up/kernel") else x, dense)
    with pytest.raises(ValueError, match="experts/up is .* 7] in the dense model"):
        upcycle(slim, fresh)
    plain = {**dense, "stack": {"layer": {**dense["stack"]["layer"], "feed_forward": {"up": {}}}}}
    with pytest.raises(ValueError, match="must be a gated feed-forward layer without biases"):
        upcycle(plain, decoder(2, **sparse_fields(moe_every=1))[1])
