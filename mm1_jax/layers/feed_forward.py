"""Position-wise feed-forward layers: gated, as in the decoder, and plain, as in vision encoders."""

import enum

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from mm1_jax.config import InstantiableConfig, Required, config_class, derived
from mm1_jax.field_types import PositiveInt
from mm1_jax.layers.linear import Linear
from mm1_jax.layers.module import Module
from mm1_jax.parallel.rematerialisation import saved_name
from mm1_jax.parallel.sharding import constrain

# Names of the projections, which a rematerialization policy may save.
MLP_GATE = saved_name("mlp_gate")
MLP_UP = saved_name("mlp_up")


class Activation(enum.Enum):
    """Activation function; call a member like a function."""

    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    QUICK_GELU = "quick_gelu"
    SILU = "silu"

    def __call__(self, x: jax.Array) -> jax.Array:
        match self:
            case Activation.GELU:
                return jax.nn.gelu(x, approximate=False)
            case Activation.GELU_TANH:
                return jax.nn.gelu(x, approximate=True)
            case Activation.QUICK_GELU:
                # The approximation used to train the CLIP encoders of OpenAI and DFN.
                return x * jax.nn.sigmoid(1.702 * x)
            case Activation.SILU:
                return jax.nn.silu(x)


class GatedFeedForward(Module):
    """y = (silu(x gate) * (x up)) down."""

    @config_class
    class Config(Module.Config):
        input_dim: Required[PositiveInt] = derived()
        hidden_dim: Required[PositiveInt] = derived()
        activation: Activation = Activation.SILU
        gate: InstantiableConfig = Linear.default_config().set(axes=("embed", "mlp"))
        up: InstantiableConfig = Linear.default_config().set(axes=("embed", "mlp"))
        down: InstantiableConfig = Linear.default_config().set(
            axes=("mlp", "embed"), output_first=True
        )

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        into = {"input_dim": cfg.input_dim, "output_dim": cfg.hidden_dim}
        out = {"input_dim": cfg.hidden_dim, "output_dim": cfg.input_dim}
        self.gate = cfg.gate.set(**into).instantiate(rngs=rngs)
        self.up = cfg.up.set(**into).instantiate(rngs=rngs)
        self.down = cfg.down.set(**out).instantiate(rngs=rngs)
        self.activation = Activation(cfg.activation)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate = checkpoint_name(self.gate(x), MLP_GATE)
        up = checkpoint_name(self.up(x), MLP_UP)
        hidden = constrain(self.activation(gate) * up, "batch", "sequence", "activation_mlp")
        return self.down(hidden)


class FeedForward(Module):
    """y = activation(x up) down."""

    @config_class
    class Config(Module.Config):
        input_dim: Required[PositiveInt] = derived()
        hidden_dim: Required[PositiveInt] = derived()
        activation: Activation = Activation.GELU
        up: InstantiableConfig = Linear.default_config().set(axes=("embed", "mlp"), bias=True)
        down: InstantiableConfig = Linear.default_config().set(
            axes=("mlp", "embed"), output_first=True, bias=True
        )

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        into = {"input_dim": cfg.input_dim, "output_dim": cfg.hidden_dim}
        out = {"input_dim": cfg.hidden_dim, "output_dim": cfg.input_dim}
        self.up = cfg.up.set(**into).instantiate(rngs=rngs)
        self.down = cfg.down.set(**out).instantiate(rngs=rngs)
        self.activation = Activation(cfg.activation)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        hidden = self.activation(checkpoint_name(self.up(x), MLP_UP))
        return self.down(constrain(hidden, "batch", "sequence", "activation_mlp"))
