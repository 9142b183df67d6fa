"""`python -m mm1_jax run_study` as a script of the checkout."""

import sys

from mm1_jax.__main__ import script

if __name__ == "__main__":
    sys.exit(script("run_study"))
