"""MM1: multimodal LLM pre-training in JAX. Imports nothing heavy, so that `--help` is instant."""

from mm1_jax.former_names import install

install()
