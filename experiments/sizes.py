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
        patch_size=8,
        model_dim=64,
        num_layers=3,
        num_heads=4,
        hidden_dim=256,
        pixel_mean=(0.5, 0.5, 0.5),
        pixel_std=(0.5, 0.5, 0.5),
    )
    # Of the size of the patch embeddings: with CLIP's .02 so small a model stalls for hundreds of
    # steps before it looks at the pictures.
    vision_encoder.positions.init_std = 0.4
    connector = CAbstractor.default_config().set(
        num_image_tokens=4, depth=1, hidden_dim=128, mlp_depth=2
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
