"""Compilation of the program that draws the first state."""

import jax
import numpy as np

from experiments.pretrain import mm1_tiny
from mm1_jax.train.program import _quick_options


def test_few_optimizations_draw_the_same_bits(monkeypatch):
    mesh = jax.make_mesh((1,), ("data",))
    assert _quick_options(mesh) is None  # XLA_FLAGS of the tests have a level.
    monkeypatch.delenv("XLA_FLAGS")
    options = _quick_options(mesh)
    assert options is not None
    std = mm1_tiny().model.decoder.embedding.init_std

    def draw(prng_key):
        return std * jax.random.truncated_normal(prng_key, -2, 2, (64, 33))

    lowered = jax.jit(draw).lower(jax.random.key(0))
    quick, full = (
        np.asarray(lowered.compile(compiler_options=each)(jax.random.key(3)))
        for each in (options, {"xla_backend_optimization_level": 3})
    )
    np.testing.assert_array_equal(quick, full)
