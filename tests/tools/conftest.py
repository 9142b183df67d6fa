import numpy as np
import pytest


@pytest.fixture
def assert_equal_work():
    """Checks two sides of a step benchmark: losses, and kinds of operations."""

    def check(sides):
        # They stay equal only if weights, data, gradients and updates are.
        losses = [[side.step() for _ in range(4)] for side in sides]
        assert losses[0][0] != pytest.approx(losses[0][-1], rel=1e-3)
        np.testing.assert_allclose(*losses, rtol=1e-5)
        for side in sides:
            found = side.breakdown()
            assert {"attention", "linear layers", "optimizer"} <= found.keys()
            assert all(seconds > 0 for seconds in found.values())

    return check
