"""Freezing, averages and stored dtypes, each compared with a plain counterpart."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bigram_trainer import host_batch
from flax import nnx

from mm1_jax.layers.parameter_paths import parameter_paths
from mm1_jax.parallel.parallelism import Parallelism
from mm1_jax.train.loss import Loss
from mm1_jax.train.optimizers.adafactor import Adafactor
from mm1_jax.train.optimizers.adamw import AdamW
from mm1_jax.train.optimizers.update import Update
from mm1_jax.train.program import Program, ProgramSpec

STEPS = 3


@pytest.fixture
def make_program(fakes):
    """Makes programs of `BigramModel`, with parameters `embedding`, `head` and `scale`."""

    def make(optimizer=AdamW, *, num_devices=1, gradient_accumulation=None, **fields):
        cfg = optimizer.default_config().set(
            learning_rate=0.05, warmup_steps=1, decay_steps=10, **fields
        )
        parallelism = Parallelism.default_config().set(gradient_accumulation=gradient_accumulation)
        if num_devices == 8:
            parallelism.set(data=2, fsdp=2, model=2)
        spec = ProgramSpec(fakes.objective(), optimizer=cfg, parallelism=parallelism)
        return Program(spec, jax.devices()[:num_devices])

    return make


def run(program, make_batch, steps=STEPS):
    """Returns the initial state and the states after each step, on the host."""
    state = program.first_state(jax.random.key(0))
    states = [jax.device_get(state)]
    step = program.compile()
    for number in range(1, steps + 1):
        state, _ = step(state, program.place(host_batch(make_batch(number))))
        states.append(jax.device_get(state))
    return states


def assert_equal(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


@pytest.mark.parametrize("num_devices", [1, 8])
def test_an_average_equals_the_averaged_weights_of_a_run_without_it(
    make_program, make_batch, num_devices
):
    plain = [state.params for state in run(make_program(), make_batch)]
    states = run(make_program(ema_decay=0.75, num_devices=num_devices), make_batch)
    expected = plain[0]
    assert_equal(states[0].params, expected)
    for weights, state in zip(plain[1:], states[1:], strict=True):
        assert_equal(state.opt_state.weights, weights, rtol=1e-5, atol=1e-6)
        expected = jax.tree.map(lambda a, x: 0.75 * a + 0.25 * x, expected, weights)
        assert_equal(state.params, expected, rtol=1e-5, atol=1e-6)
    # The average is far from the weights, so the test distinguishes the two.
    assert np.abs(states[-1].params["head"] - plain[-1]["head"]).max() > 0.01


@pytest.mark.parametrize("optimizer", [AdamW, Adafactor])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_frozen_parameters_stay_and_the_rest_trains_as_if_alone(
    make_program, make_batch, optimizer, accumulation
):
    program = make_program(
        optimizer, frozen=("embedding",), gradient_accumulation=accumulation, ema_decay=0.5
    )
    states = run(program, make_batch)
    paths = parameter_paths(states[-1].opt_state.weights)
    assert paths == ["head", "scale"]
    moments = [
        x
        for x in jax.tree.leaves(states[-1].opt_state, is_leaf=lambda x: isinstance(x, dict))
        if isinstance(x, dict)
    ]
    assert len(moments) >= 2 and all(set(each) == {"head", "scale"} for each in moments)

    # Computes the same by hand, with the gradient of two parameters and the third a constant.
    cfg = program.optimizer.config.set(frozen=(), ema_decay=None)
    params = jax.tree.map(jnp.asarray, states[0].params)
    embedding = params.pop("embedding")
    _, shapes = nnx.split(program.model(states[0].params))
    kept = nnx.from_flat_state([x for x in nnx.to_flat_state(shapes) if x[0] != ("embedding",)])
    transformation = cfg.instantiate().transformation(kept)
    opt_state, average = transformation.init(params), params

    def loss(params, batch):
        model = program.model({**params, "embedding": embedding})
        return Loss.default_config().instantiate()(
            model(batch).hidden, model, batch, num_corpora=2
        )[0]

    for number, state in enumerate(states[1:], start=1):
        gradient = jax.grad(loss)(params, jax.tree.map(jnp.asarray, make_batch(number)))
        updates, opt_state = transformation.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, x: 0.5 * (a + x), average, params)
        np.testing.assert_array_equal(state.params["embedding"], embedding)
        assert_equal(state.opt_state.weights, params, rtol=1e-4, atol=1e-5)
        assert_equal(state.params, {**average, "embedding": embedding}, rtol=1e-4, atol=1e-5)


def test_weights_in_bfloat16_are_rounded_after_every_update_and_moments_are_not(
    make_program, make_batch
):
    # With such a large eps the step follows the gradient, so rounding decides no signs.
    fields = {"clip": None, "eps": 0.1}
    plain = run(make_program(**fields), make_batch, steps=1)
    states = run(make_program(**fields, parameters_dtype="bfloat16"), make_batch, steps=1)
    assert {x.dtype for x in jax.tree.leaves(states[1].params)} == {jnp.dtype(jnp.bfloat16)}
    first = jax.tree.map(lambda x: x.astype(jnp.bfloat16), plain[0].params)
    assert_equal(states[0].params, first, rtol=0)
    # The tolerance is half a unit in the last place of values up to 2, before and after the update.
    assert_equal(
        jax.tree.map(lambda x: x.astype(np.float32), states[1].params),
        plain[1].params,
        rtol=0,
        atol=2 * 2**-8,
    )
    assert {x.dtype for x in jax.tree.leaves(adam(states[1]).nu)} == {jnp.dtype(jnp.float32)}


def test_an_average_of_weights_in_bfloat16_is_float32(make_program, make_batch):
    """Steps of the average are far below the rounding of the weights."""
    program = make_program(parameters_dtype="bfloat16", ema_decay=0.999)
    before, after = run(program, make_batch, steps=1)
    assert {x.dtype for x in jax.tree.leaves(after.params)} == {jnp.dtype(jnp.float32)}
    assert {x.dtype for x in jax.tree.leaves(after.opt_state.weights)} == {jnp.dtype(jnp.bfloat16)}
    expected = jax.tree.map(
        lambda a, x: 0.999 * a + 0.001 * x.astype(np.float32),
        before.params,
        after.opt_state.weights,
    )
    assert_equal(after.params, expected, rtol=1e-5, atol=1e-7)


def test_micro_batches_are_accumulated_in_the_configured_dtype(make_program, make_batch):
    def gradients(**fields):
        program = make_program(clip=None, gradient_accumulation=2, **fields)
        (state,) = run(program, make_batch, steps=1)[1:]
        return jax.tree.map(lambda x: x / (1 - 0.9), adam(state).mu)

    full, low = gradients(), gradients(accumulation_dtype="bfloat16")
    for x, y in zip(jax.tree.leaves(full), jax.tree.leaves(low), strict=True):
        # Both summands and the sum are rounded.
        np.testing.assert_allclose(x, y, rtol=2**-8, atol=2**-8 * np.abs(x).max())
        # The result is a bfloat16 number, up to 1e-6 from the rounding of mu.
        np.testing.assert_allclose(y, y.astype(jnp.bfloat16).astype(np.float32), rtol=1e-6)
        assert (np.abs(x - y) > 1e-3 * np.abs(x)).any()


def test_a_resumed_run_has_the_same_average_and_evaluates_it(make_trainer, fakes, tmp_path):
    """All options that change the state are set; the evaluator reports the sum of the head."""
    fields = {"ema_decay": 0.9, "frozen": ("scale",), "moments_dtype": "bfloat16"}

    def launch(folder, max_steps):
        evaluator = fakes.Evaluator(n=1)
        trainer = make_trainer(
            max_steps, output_dir=folder, evaluators={"quiz": evaluator}, num_devices=8, **fields
        )
        trainer.run()
        return trainer

    launch(tmp_path / "twice", 4)
    launch(tmp_path / "twice", 6)
    trainer = launch(tmp_path / "once", 6)

    def results(name):
        lines = (tmp_path / name / "evaluations.jsonl").read_text().splitlines()
        sums = {each["step"]: each["quiz/0/sum"] for each in map(json.loads, lines)}
        losses = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return sums, [json.loads(line)["loss"] for line in losses]

    assert results("once") == results("twice")
    states = run(trainer.program, fakes.batch, steps=6)
    for step, value in results("once")[0].items():
        np.testing.assert_allclose(value, states[step].params["head"].sum(), rtol=1e-4)
        assert step == 0 or value != pytest.approx(states[step].opt_state.weights["head"].sum())


def adam(state):
    def is_adam(node):
        return hasattr(node, "mu")

    (found,) = (x for x in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(x))
    return found


def test_a_parameter_with_limits_is_clamped_after_the_step():
    update = Update(optax.sgd(1.0), lambda step: 1.0, limits={"part/scale": (0.0, 2.0)})
    params = {"part": {"scale": jnp.asarray(1.5), "bias": jnp.asarray(1.5)}}
    gradient = {"part": {"scale": jnp.asarray(-3.0), "bias": jnp.asarray(-3.0)}}
    after, _ = update.apply(update.first_state(params), gradient)
    assert after == {"part": {"scale": 2.0, "bias": 4.5}}
