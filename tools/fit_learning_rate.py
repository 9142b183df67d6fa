"""`python -m mm1_jax fit_learning_rate` as a script of the checkout."""

import sys

from mm1_jax.__main__ import script

if __name__ == "__main__":
    sys.exit(script("fit_learning_rate"))
