"""Named experiments: numbers, choices and combinations; every algorithm lives in `mm1_jax`."""
