"""Model sizes, each a complete `MM1.Config`.

The paper gives the numbers of parameters of its decoders and not their shapes. Those here are of
the form N = 12 L d^2 (attention 4 d^2, a gated feed-forward layer of 8/3 d) that fits all of its
numbers, with the depths and widths of Apple's public configs of the same sizes; the hidden dim is
8/3 d rounded up to a multiple of 256, as there. Heads are 64 or 128 wide and not grouped.
"""

from experiments import vision_encoders
from mm1_jax.layers.moe import Capacity, MoE
from mm1_jax.models.connectors.c_abstractor import CAbstractor
from mm1_jax.models.decoder import Decoder
from mm1_jax.models.mm1 import MM1
from mm1_jax.models.vision_encoder import VisionEncoder

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
    """A decoder with top-2 experts in every `moe_every`-th layer, each as large as the dense layer.

    Training drops what exceeds twice the balanced share of an expert (GShard); the paper does not
    give its factor. `moe.dispatch = Dropless.default_config()` drops nothing.
    """
    moe = MoE.default_config().set(num_experts=num_experts, dispatch=Capacity.default_config())
    return decoder(size).set(moe=moe, moe_every=moe_every)


def mm1(decoder: Decoder.Config, vision_encoder: VisionEncoder.Config) -> MM1.Config:
    """A model of the paper: C-Abstractor, 144 tokens an image, bfloat16 products."""
    return MM1.default_config().set(
        vision_encoder=vision_encoder,
        connector=CAbstractor.default_config().set(num_image_tokens=144),
        decoder=decoder,
        dtype="bfloat16",
    )


def language_model(decoder: Decoder.Config) -> MM1.Config:
    """A decoder alone, which reads text; bfloat16 products."""
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

    The paper says 47B, which this rule of every fourth of 32 layers does not reach: it would take
    ten sparse layers, or wider experts. The rule is kept, as it is stated outright.
    """
    return mm1(sparse_decoder("7b", num_experts=32, moe_every=4), vision_encoders.vit_h14(378))


def tiny() -> MM1.Config:
    """About 1M parameters, for two CPU cores: every part of the large models, at 32 pixels."""
    vision_encoder = VisionEncoder.default_config().set(
        image_size=32,
        # Patches that are pooled into one token are averaged, and it takes a tiny encoder long to
        # tell digits through that; four patches for four tokens leave nothing to average.
        patch_size=16,
        model_dim=64,
        num_layers=3,
        num_heads=4,
        hidden_dim=256,
        # The embedded pictures are dark; around CLIP's mean, all would begin alike.
        pixel_mean=(0.15, 0.15, 0.15),
        pixel_std=(0.25, 0.25, 0.25),
    )
    vision_encoder.positions.init_std = 0.1
    connector = CAbstractor.default_config().set(
        num_image_tokens=4,
        depth=1,
        hidden_dim=64,
        # A linear read-out after blocks that start as their shortcuts: with two layers after random
        # blocks, shapes went unseen for twice as many steps.
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


def tiny_moe() -> MM1.Config:
    """`tiny` with four experts, two of them for each token, in every second layer."""
    cfg = tiny()
    cfg.decoder.set(moe=MoE.default_config().set(num_experts=4), moe_every=2)
    return cfg
