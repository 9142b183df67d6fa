"""MM1: multimodal LLM pre-training in JAX. Imports nothing, so that `--help` is instant."""
