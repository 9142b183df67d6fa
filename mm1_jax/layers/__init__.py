"""Parameter holders that know nothing of images or training."""

from flax import nnx

# With eager sharding an annotated parameter cannot be made without a mesh; `sharding.py` places
# parameters instead.
nnx.use_eager_sharding(False)
