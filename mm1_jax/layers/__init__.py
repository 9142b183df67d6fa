"""Layers: modules that hold parameters and know nothing about images or training."""

from flax import nnx

# With eager sharding, creating an annotated parameter requires a mesh. Parameters are placed by
# `parallel/sharding.py` instead.
nnx.use_eager_sharding(False)
