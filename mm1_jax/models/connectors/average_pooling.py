"""Average pooling and one linear map, the simplest connector (MM1, section 3.1; Emu2)."""

from flax import nnx
from jaxtyping import Array, Float

from mm1_jax.config import InstantiableConfig, config_class
from mm1_jax.layers.linear import Linear
from mm1_jax.models.connectors.base import Connector, adaptive_pool, square_side, to_grid


class AveragePooling(Connector):
    """Averages the patches over a square grid of bins, one per image token."""

    @config_class
    class Config(Connector.Config):
        projection: InstantiableConfig = Linear.default_config().set(bias=True)

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.side = square_side(cfg.num_image_tokens, "connector.num_image_tokens")
        self.projection = cfg.projection.set(
            input_dim=cfg.input_dim, output_dim=cfg.output_dim
        ).instantiate(rngs=rngs)

    def __call__(self, image_features: Float[Array, "J P Dv"]) -> Float[Array, "J M D"]:
        pooled = adaptive_pool(to_grid(image_features), self.side)
        return self.projection(pooled.reshape(len(pooled), self.side**2, -1))
