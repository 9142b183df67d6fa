"""The chunked loss on meshes: equal numbers, and no communication inside the loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm1_jax.layers.embedding import Embedding
from mm1_jax.models.cross_entropy import chunked_token_losses
from mm1_jax.parallel.parallelism import Parallelism
from mm1_jax.parallel.sharding import AxisRules, parameter_shardings, use_mesh
from mm1_jax.rehearse.predict import traffic
from mm1_jax.rehearse.program import HloProgram

ROWS, LENGTH, DIM, VOCAB = 8, 12, 16, 32
MESHES = (
    {"data": 8},
    {"fsdp": 8},
    {"data": 2, "fsdp": 4},
    {"fsdp": 2, "seq": 4},
    {"data": 2, "fsdp": 2, "model": 2},
)


def _objective(params, graphdef, hidden, targets, chunk_length):
    layer = nnx.merge(graphdef, params)
    losses, log_normalizers = chunked_token_losses(layer, hidden, targets, chunk_length)
    return jnp.sum(losses) + 0.1 * jnp.sum(log_normalizers**2)


@pytest.fixture
def problem(prng_key):
    cfg = Embedding.default_config().set(vocab_size=VOCAB, model_dim=DIM, init_std=1.0)
    graphdef, params = nnx.split(cfg.instantiate(rngs=nnx.Rngs(params=prng_key)))
    hidden = jax.random.normal(jax.random.key(1), (ROWS, LENGTH, DIM))
    targets = jax.random.randint(jax.random.key(2), (ROWS, LENGTH), 0, VOCAB)
    return params, graphdef, hidden, targets


@pytest.fixture
def expected(problem):
    params, graphdef, hidden, targets = problem
    function = jax.value_and_grad(_objective, argnums=(0, 2))
    return function(params, graphdef, hidden, targets, None)


def _compiled(problem, axes, chunk_length):
    params, graphdef, hidden, targets = problem
    mesh, rules = Parallelism.default_config().set(**axes).instantiate().mesh(), AxisRules()

    def run(params, hidden, targets):
        with use_mesh(mesh, rules):
            function = jax.value_and_grad(_objective, argnums=(0, 2))
            return function(params, graphdef, hidden, targets, chunk_length)

    rows = jax.sharding.NamedSharding(mesh, rules.spec(("batch",), mesh))
    shardings = parameter_shardings(params, mesh, rules)
    jitted = jax.jit(run, in_shardings=(shardings, rows, rows))
    return jitted.lower(params, hidden, targets).compile(), shardings, rows


@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_chunks_on_a_mesh_give_the_same_loss_and_gradients(problem, expected, axes):
    params, _, hidden, targets = problem
    step, shardings, rows = _compiled(problem, axes, 3)
    placed = jax.device_put(params, shardings), *jax.device_put((hidden, targets), rows)
    value, gradients = step(*placed)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    for mine, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axes", MESHES[:4], ids=str)
def test_the_loop_over_chunks_has_no_communication(problem, axes):
    step, _, _ = _compiled(problem, axes, 3)
    collectives = traffic(HloProgram.parse(step.as_text()).schedule())
    assert collectives, "gradients are added up somewhere"
    assert all(each.executions == each.count for each in collectives.values()), collectives


def test_chunks_that_do_not_divide_the_local_length_are_an_error(problem):
    with pytest.raises(ValueError, match="chunk_length=4: must divide the 6 positions of a row"):
        _compiled(problem, {"data": 1, "fsdp": 4, "seq": 2}, 4)


def test_rows_that_the_mesh_does_not_divide_are_left_to_the_compiler(problem, expected):
    params, graphdef, hidden, targets = problem
    mesh = Parallelism.default_config().set(data=8).instantiate().mesh()
    with use_mesh(mesh, AxisRules()):
        few = _objective(params, graphdef, hidden[:3], targets[:3], 3)
    assert few == pytest.approx(_objective(params, graphdef, hidden[:3], targets[:3], None))
