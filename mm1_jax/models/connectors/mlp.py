"""MLP over each patch, as in LLaVA 1.5 (arXiv 2310.03744, section 3.2).

If there are not as many tokens as patches, the features are first averaged over a square grid of
bins.
"""

from flax import nnx
from jaxtyping import Array, Float

from mm1_jax.config import InstantiableConfig, config_class
from mm1_jax.layers.feed_forward import Activation
from mm1_jax.layers.linear import Linear
from mm1_jax.models.connectors.base import Connector, adaptive_pool, square_side, to_grid


class MLP(Connector):
    """y = activation(x up) down, with the decoder's model dim as hidden dim."""

    @config_class
    class Config(Connector.Config):
        activation: Activation = Activation.GELU
        up: InstantiableConfig = Linear.default_config().set(bias=True, axes=("embed", "mlp"))
        down: InstantiableConfig = Linear.default_config().set(
            bias=True, axes=("mlp", "embed"), output_first=True
        )

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.side = square_side(cfg.num_image_tokens, "connector.num_image_tokens")
        self.up = cfg.up.set(input_dim=cfg.input_dim, output_dim=cfg.output_dim).instantiate(
            rngs=rngs
        )
        self.down = cfg.down.set(input_dim=cfg.output_dim, output_dim=cfg.output_dim).instantiate(
            rngs=rngs
        )
        self.activation = Activation(cfg.activation)

    def __call__(self, image_features: Float[Array, "J P Dv"]) -> Float[Array, "J M D"]:
        if image_features.shape[1] != self.side**2:
            pooled = adaptive_pool(to_grid(image_features), self.side)
            image_features = pooled.reshape(len(pooled), self.side**2, -1)
        return self.down(self.activation(self.up(image_features)))
