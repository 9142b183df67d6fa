"""MM1: multimodal LLM pre-training in JAX. Imports nothing heavy, so that `--help` is instant."""

from mm1_jax import experiment_folders, former_names

__version__ = "0.1.0"

experiment_folders.install()
former_names.install()
