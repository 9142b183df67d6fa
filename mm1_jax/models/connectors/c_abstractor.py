"""C-Abstractor: convolutions around adaptive pooling, so that tokens keep local structure.

It is from Honeybee (arXiv 2312.06742, section 3.2) and is the connector of MM1 (section 3.1). Its
blocks are the RegNet bottleneck blocks of timm, with LayerNorm over channels and SiLU.

Legend: J images, P patches/image, h w rows and columns of the feature map, a b those of a kernel,
M image tokens/image, Dv vision dim, D model dim, F channels.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mm1_jax.config import InstantiableConfig, Required, config_class, derived
from mm1_jax.field_types import NonNegative, NonNegativeInt, Positive, PositiveInt
from mm1_jax.layers.linear import Linear, fan_in
from mm1_jax.layers.module import Module, param
from mm1_jax.layers.norm import LayerNorm
from mm1_jax.layers.position_embedding import PositionEmbedding
from mm1_jax.layers.stack import rematerialise
from mm1_jax.models.connectors.base import Connector, adaptive_pool, square_side, to_grid
from mm1_jax.parallel.rematerialisation import Remat

# eps of LayerNormAct2d in timm, which Honeybee uses. With 1e-6, the eps of the vision encoder's
# norms, outputs differ by 1e-4 and more where features are small.
NORM = LayerNorm.default_config().set(eps=1e-5)


class CAbstractor(Connector):
    """Positions, convolutions, pooling to a square grid, convolutions, and a read-out MLP."""

    @config_class
    class Config(Connector.Config):
        # Number of patches along each side of an image, set by the parent. The positions are
        # resized for grids of other sizes.
        grid_size: Required[PositiveInt] = derived()
        # Number of blocks before the pooling, and again after it; 0 leaves the pooling and the MLP.
        depth: NonNegativeInt = 3
        hidden_dim: PositiveInt = 1024
        # Number of linear layers of the read-out, with SiLU between them.
        mlp_depth: PositiveInt = 2
        positions: InstantiableConfig = PositionEmbedding.default_config()
        norm: InstantiableConfig = NORM
        # Initial scale of the norm that ends the residual branch of each block. With 0, blocks
        # start as their shortcuts and do not mix features. Honeybee uses 1.
        branch_init_scale: NonNegative = 1.0
        remat: Remat = Remat.FULL

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.remat = Remat(cfg.remat)
        self.side = square_side(cfg.num_image_tokens, "connector.num_image_tokens")
        self.positions = cfg.positions.set(
            grid_size=cfg.grid_size, model_dim=cfg.input_dim
        ).instantiate(rngs=rngs)

        def stage(input_dim: int) -> nnx.List:
            dims = [input_dim] + [cfg.hidden_dim] * cfg.depth
            return nnx.List(
                BottleneckBlock.default_config()
                .set(
                    input_dim=before,
                    output_dim=after,
                    norm=cfg.norm,
                    branch_init_scale=cfg.branch_init_scale,
                )
                .instantiate(rngs=rngs)
                for before, after in zip(dims, dims[1:], strict=False)
            )

        self.stage_1 = stage(cfg.input_dim)
        self.stage_2 = stage(cfg.hidden_dim)
        pooled_dim = cfg.hidden_dim if cfg.depth else cfg.input_dim
        dims = [pooled_dim] + [cfg.output_dim] * cfg.mlp_depth
        self.read_out = nnx.List(
            Linear.default_config()
            .set(input_dim=before, output_dim=after, bias=True, axes=("embed", "mlp"))
            .instantiate(rngs=rngs)
            for before, after in zip(dims, dims[1:], strict=False)
        )

    def __call__(self, image_features: Float[Array, "J P Dv"]) -> Float[Array, "J M D"]:
        x = self.positions(to_grid(image_features))
        run = rematerialise(BottleneckBlock.__call__, self.remat, prevent_cse=True)
        for block in self.stage_1:
            x = run(block, x)
        x = adaptive_pool(x, self.side)
        for block in self.stage_2:
            x = run(block, x)
        x = x.reshape(len(x), self.side**2, -1)
        x = self.read_out[0](x)
        for linear in self.read_out[1:]:
            x = linear(jax.nn.silu(x))
        return x


class BottleneckBlock(Module):
    """RegNet block: 1x1, depthwise 3x3 and 1x1 convolutions, squeeze-and-excitation."""

    @config_class
    class Config(Module.Config):
        input_dim: Required[PositiveInt] = derived()
        output_dim: Required[PositiveInt] = derived()
        norm: InstantiableConfig = NORM
        branch_init_scale: NonNegative = 1.0
        # Number of squeezed channels, as a share of the block's input channels.
        squeeze_ratio: Positive = 0.25

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        def pointwise(input_dim: int, norm: InstantiableConfig = cfg.norm) -> PointwiseNorm:
            child = PointwiseNorm.default_config().set(norm=norm)
            return child.set(input_dim=input_dim, output_dim=cfg.output_dim).instantiate(rngs=rngs)

        self.pointwise_in = pointwise(cfg.input_dim)
        shape, init = (3, 3, cfg.output_dim), fan_in(1.0, input_dims=(0, 1))
        self.depthwise = param(rngs, shape, (None, None, "mlp"), init)
        self.depthwise_norm = cfg.norm.set(input_dim=cfg.output_dim).instantiate(rngs=rngs)
        self.squeeze_excite = (
            SqueezeExcite.default_config()
            .set(input_dim=cfg.output_dim, hidden_dim=round(cfg.squeeze_ratio * cfg.input_dim))
            .instantiate(rngs=rngs)
        )
        self.pointwise_out = pointwise(
            cfg.output_dim, cfg.norm.clone(init_scale=cfg.branch_init_scale)
        )
        self.shortcut = None if cfg.input_dim == cfg.output_dim else pointwise(cfg.input_dim)

    def __call__(self, x: Float[Array, "J h w _"]) -> Float[Array, "J h w F"]:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        x = jax.nn.silu(self.pointwise_in(x))
        x = jax.nn.silu(self.depthwise_norm(depthwise(x, self.depthwise[...])))
        x = self.squeeze_excite(x)
        return jax.nn.silu(self.pointwise_out(x) + shortcut)


class PointwiseNorm(Module):
    """A 1x1 convolution, which is a linear map over channels, followed by a norm over channels."""

    @config_class
    class Config(Module.Config):
        input_dim: Required[PositiveInt] = derived()
        output_dim: Required[PositiveInt] = derived()
        linear: InstantiableConfig = Linear.default_config()
        norm: InstantiableConfig = NORM

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.linear = cfg.linear.set(
            input_dim=cfg.input_dim, output_dim=cfg.output_dim
        ).instantiate(rngs=rngs)
        self.norm = cfg.norm.set(input_dim=cfg.output_dim).instantiate(rngs=rngs)

    def __call__(self, x: Float[Array, "J h w _"]) -> Float[Array, "J h w F"]:
        return self.norm(self.linear(x))


class SqueezeExcite(Module):
    """Scales channels by gates in (0, 1) computed from their means over the feature map."""

    @config_class
    class Config(Module.Config):
        input_dim: Required[PositiveInt] = derived()
        hidden_dim: Required[PositiveInt] = derived()

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        # The squeezed dim is small and often odd, so it is not sharded.
        linear = Linear.default_config().set(bias=True)
        self.squeeze = linear.clone(
            input_dim=cfg.input_dim, output_dim=cfg.hidden_dim, axes=("embed", None)
        ).instantiate(rngs=rngs)
        self.excite = linear.clone(
            input_dim=cfg.hidden_dim, output_dim=cfg.input_dim, axes=(None, "embed")
        ).instantiate(rngs=rngs)

    def __call__(self, x: Float[Array, "J h w F"]) -> Float[Array, "J h w F"]:
        squeezed = jax.nn.silu(self.squeeze(x.mean(axis=(1, 2))))
        return x * jax.nn.sigmoid(self.excite(squeezed))[:, None, None]


def depthwise(
    x_JhwF: Float[Array, "J h w F"], kernel_abF: Float[Array, "a b F"]
) -> Float[Array, "J h w F"]:
    """Convolves each channel with its own odd-sized kernel, with zero padding.

    It is computed as a sum of shifted products. On CPU, XLA runs these and their gradient two to
    five times faster than a grouped convolution, and fuses them with the operations that follow.
    """
    height, width = x_JhwF.shape[1:3]
    rows, columns = kernel_abF.shape[:2]
    padding = ((0, 0), (rows // 2, rows // 2), (columns // 2, columns // 2), (0, 0))
    padded = jnp.pad(x_JhwF, padding)
    shifted = (
        padded[:, a : a + height, b : b + width] * kernel_abF[a, b][None, None, None]
        for a in range(rows)
        for b in range(columns)
    )
    return sum(shifted, start=jnp.zeros_like(x_JhwF))
