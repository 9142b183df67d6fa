import jax.numpy as jnp
import numpy as np
import pytest

from mm1_jax.decoding.sampling import GREEDY, Sampling, choose, row_keys


def draw(logits, sampling, *, number=2000, forbidden=(), seed=0) -> np.ndarray:
    """Draws tokens for `number` rows with the same logits."""
    rows = jnp.arange(number)
    logits = jnp.broadcast_to(jnp.asarray(logits, jnp.float32)[None], (number, len(logits)))
    keys = row_keys(seed, rows)
    return np.asarray(choose(logits, forbidden, sampling, keys, jnp.zeros_like(rows)))


def test_tokens_are_sampled_in_proportion_to_their_probability():
    logits = np.log([0.5, 0.25, 0.15, 0.1])
    shares = np.bincount(draw(logits, Sampling(1.0)), minlength=4) / 2000
    # The tolerance is four standard deviations of a share of 2,000 draws.
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.15, 0.1], atol=4 * np.sqrt(0.25 / 2000))
    shares = np.bincount(draw(logits, Sampling(0.5)), minlength=4) / 2000
    squares = np.array([0.5, 0.25, 0.15, 0.1]) ** 2
    np.testing.assert_allclose(shares, squares / squares.sum(), atol=4 * np.sqrt(0.25 / 2000))


def test_truncated_and_forbidden_tokens_are_never_sampled():
    logits = np.log([0.5, 0.25, 0.15, 0.1])
    assert set(draw(logits, Sampling(5.0, top_k=2))) == {0, 1}
    assert set(draw(logits, Sampling(1.0, top_p=0.7))) == {0, 1}
    assert set(draw(logits, Sampling(1.0, top_p=0.8))) == {0, 1, 2}
    assert set(draw(logits, Sampling(1.0, top_p=1e-6))) == {0}
    # The nucleus is taken from the allowed tokens.
    assert set(draw(logits, Sampling(1.0, top_p=0.45), forbidden=(0,))) == {1}
    assert set(draw(logits, GREEDY, forbidden=(0,))) == {1}


def test_sampling_depends_on_row_id_seed_and_step_alone():
    logits = jnp.zeros((5, 1000))
    rows, steps = jnp.asarray([4, 7, 1, 3, 9]), jnp.asarray([0, 5, 0, 2, 2])
    sampling = Sampling(1.0)
    together = choose(logits, (), sampling, row_keys(0, rows), steps)
    for i in range(5):
        one = slice(i, i + 1)
        alone = choose(logits[one], (), sampling, row_keys(0, rows[one]), steps[one])
        assert alone[0] == together[i]
    for keys, other in ((row_keys(1, rows), steps), (row_keys(0, rows), steps + 1)):
        assert jnp.sum(choose(logits, (), sampling, keys, other) != together) >= 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.1}, "temperature=-0.1: must be 0"),
        ({"temperature": float("nan")}, "temperature=nan: must be 0"),
        ({"temperature": 1.0, "top_k": 0}, "top_k=0: must be at least 1"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p=0.0: must be above 0"),
        ({"top_p": 0.5}, "temperature=0, which is greedy"),
    ],
)
def test_invalid_options_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**fields)
