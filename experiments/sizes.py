"""Model sizes, each a complete `MM1.Config`.

The paper states the parameter counts of its decoders but not their shapes. The shapes here follow
N = 12 L d^2 (4 d^2 for attention and a gated feed-forward layer of 8/3 d), which fits all counts of
the paper, with the depths and widths of Apple's public configs of the same sizes. As there, the
hidden dim is 8/3 d rounded up to a multiple of 256. Heads are 64 or 128 wide and not grouped.
"""

from experiments import vision_encoders
from mm1_jax.layers.moe import Capacity, MoE
from mm1_jax.models.connectors.c_abstractor import CAbstractor
from mm1_jax.models.decoder import Decoder
from mm1_jax.models.mm1 import MM1
from mm1_jax.models.vision_encoder import VisionEncoder
from mm1_jax.parallel.rematerialisation import Remat

# Depth, width and number of heads of each decoder.
DECODERS = {
    "9m": (5, 384, 6),
    "85m": (12, 768, 12),
    "302m": (24, 1024, 16),
    "1b": (24, 2048, 32),
    "3b": (26, 3072, 24),
    "7b": (32, 4096, 32),
    "30b": (48, 7168, 56),
}


def decoder(size: str) -> Decoder.Config:
    """A dense decoder by its name in DECODERS, for a vocabulary of 32,000."""
    num_layers, model_dim, num_heads = DECODERS[size]
    return Decoder.default_config().set(
        num_layers=num_layers,
        model_dim=model_dim,
        num_heads=num_heads,
        hidden_dim=-(-8 * model_dim // (3 * 256)) * 256,
    )


def sparse_decoder(size: str, *, num_experts: int, moe_every: int) -> Decoder.Config:
    """A decoder with top-2 experts in every `moe_every`-th layer, each as large as a dense layer.

    Training drops tokens beyond twice the balanced share of an expert (GShard); the paper does not
    state its capacity factor. `moe.dispatch = Dropless.default_config()` drops no token.
    """
    moe = MoE.default_config().set(num_experts=num_experts, dispatch=Capacity.default_config())
    return decoder(size).set(moe=moe, moe_every=moe_every)


def mm1(decoder: Decoder.Config, vision_encoder: VisionEncoder.Config) -> MM1.Config:
    """A model of the paper: C-Abstractor, 144 tokens per image, bfloat16 products."""
    return MM1.default_config().set(
        vision_encoder=vision_encoder,
        connector=CAbstractor.default_config().set(num_image_tokens=144),
        decoder=decoder,
        dtype="bfloat16",
    )


def language_model(decoder: Decoder.Config) -> MM1.Config:
    """A text-only decoder; bfloat16 products."""
    return MM1.default_config().set(
        vision_encoder=None, connector=None, decoder=decoder, dtype="bfloat16"
    )


def mm1_3b() -> MM1.Config:
    """2.9B decoder."""
    return mm1(decoder("3b"), vision_encoders.vit_h14(378))


def mm1_7b() -> MM1.Config:
    """6.5B decoder."""
    return mm1(decoder("7b"), vision_encoders.vit_h14(378))


def mm1_30b() -> MM1.Config:
    """29.7B decoder."""
    return mm1(decoder("30b"), vision_encoders.vit_h14(378))


def mm1_3b_moe() -> MM1.Config:
    """64 experts in every second layer: 64.8B in the decoder's layers, the paper's "64B"."""
    return mm1(sparse_decoder("3b", num_experts=64, moe_every=2), vision_encoders.vit_h14(378))


def mm1_7b_moe() -> MM1.Config:
    """32 experts in every fourth layer: 40.0B in the decoder's layers.

    The paper says 47B, which sparse layers in every fourth of 32 layers do not reach: it would take
    ten of them, or wider experts. The config follows the stated rule.
    """
    return mm1(sparse_decoder("7b", num_experts=32, moe_every=4), vision_encoders.vit_h14(378))


def tiny() -> MM1.Config:
    """About 1M parameters, for two CPU cores: all parts of the large models, at 32 pixels."""
    vision_encoder = VisionEncoder.default_config().set(
        image_size=32,
        # Pooling averages the patches of a token, through which a tiny encoder takes long to learn
        # to tell digits apart. With four patches for four tokens, nothing is averaged.
        patch_size=16,
        model_dim=64,
        num_layers=3,
        num_heads=4,
        hidden_dim=256,
        # The embedded pictures are dark: normalized by CLIP's mean, all would look alike at first.
        pixel_mean=(0.15, 0.15, 0.15),
        pixel_std=(0.25, 0.25, 0.25),
    )
    vision_encoder.positions.init_std = 0.1
    connector = CAbstractor.default_config().set(
        num_image_tokens=4,
        depth=1,
        hidden_dim=64,
        # A linear read-out after blocks that start as the identity. With two layers after randomly
        # initialized blocks, it took twice as many steps to learn shapes.
        mlp_depth=1,
        branch_init_scale=0.0,
    )
    decoder = Decoder.default_config().set(
        model_dim=128, num_layers=4, num_heads=4, num_kv_heads=2, hidden_dim=384
    )
    decoder.embedding.init_std = 0.5
    return MM1.default_config().set(
        vision_encoder=vision_encoder, connector=connector, decoder=decoder
    )


def small_world() -> MM1.Config:
    """`tiny` at 64 pixels with 16 tokens per image, one for each cell of the small world."""
    cfg = tiny()
    cfg.vision_encoder.set(image_size=64, model_dim=96, hidden_dim=384)
    cfg.connector.set(num_image_tokens=16, hidden_dim=96)
    # Cells must be told apart before anything else is learned.
    cfg.vision_encoder.positions.init_std = cfg.connector.positions.init_std = 0.4
    # Activations of such a model are small, and recomputing them takes a fifth of a step.
    cfg.vision_encoder.stack.remat = cfg.connector.remat = cfg.decoder.stack.remat = Remat.NONE
    return cfg


def tiny_moe() -> MM1.Config:
    """`tiny` with four experts in every second layer, two per token."""
    cfg = tiny()
    cfg.decoder.set(moe=MoE.default_config().set(num_experts=4), moe_every=2)
    return cfg
