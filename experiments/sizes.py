"""Model sizes, each a complete `MM1.Config`."""

from mm1_jax.layers.moe import MoE
from mm1_jax.models.connectors.c_abstractor import CAbstractor
from mm1_jax.models.decoder import Decoder
from mm1_jax.models.mm1 import MM1
from mm1_jax.models.vision_encoder import VisionEncoder


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
