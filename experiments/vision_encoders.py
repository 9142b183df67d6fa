"""Vision encoders of MM1's ablation (section 3.1, table 1), each a complete `VisionEncoder.Config`.

They are CLIP's image encoders at any multiple of 14 pixels (224, 336 and 378 in the paper) and
AIM's trunks. AIMv2's ViT-L/14 is newer than the paper. To replace a model's encoder:
`cfg.vision_encoder = vision_encoders.aim_600m()`.
"""

from mm1_jax.layers.attention import Pattern
from mm1_jax.layers.feed_forward import Activation, GatedFeedForward
from mm1_jax.layers.norm import LayerNorm, RMSNorm
from mm1_jax.layers.position_embedding import SinCosPositions
from mm1_jax.models.vision_encoder import ClassToken, VisionEncoder

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def vit_l14(
    image_size: int = 336, activation: Activation = Activation.QUICK_GELU
) -> VisionEncoder.Config:
    """CLIP's ViT-L/14: 303M parameters."""
    return _clip(image_size, activation).set(
        model_dim=1024, num_layers=24, num_heads=16, hidden_dim=4096
    )


def vit_h14(
    image_size: int = 378, activation: Activation = Activation.QUICK_GELU
) -> VisionEncoder.Config:
    """CLIP's ViT-H/14: 631M parameters; at 378 px the encoder of the final models."""
    return _clip(image_size, activation).set(
        model_dim=1280, num_layers=32, num_heads=16, hidden_dim=5120
    )


def aim_600m(pattern: Pattern = Pattern.BIDIRECTIONAL) -> VisionEncoder.Config:
    """AIM's smallest trunk: 681M parameters."""
    return _aim(pattern).set(model_dim=1536, num_layers=24, num_heads=12, hidden_dim=6144)


def aim_1b(pattern: Pattern = Pattern.BIDIRECTIONAL) -> VisionEncoder.Config:
    """AIM's 1B trunk: 1,210M parameters."""
    return _aim(pattern).set(model_dim=2048, num_layers=24, num_heads=16, hidden_dim=8192)


def aim_3b(pattern: Pattern = Pattern.BIDIRECTIONAL) -> VisionEncoder.Config:
    """AIM's 3B trunk: 2,720M parameters."""
    return _aim(pattern).set(model_dim=3072, num_layers=24, num_heads=24, hidden_dim=12288)


def aim_tiny(pattern: Pattern = Pattern.BIDIRECTIONAL) -> VisionEncoder.Config:
    """A trunk of 0.2M parameters like AIM's, for the embedded pictures of 64 px."""
    return _aim(pattern).set(
        image_size=64,
        patch_size=8,
        model_dim=64,
        num_layers=4,
        num_heads=4,
        hidden_dim=256,
        pixel_mean=(0.3, 0.3, 0.3),
        pixel_std=(0.25, 0.25, 0.25),
    )


def clip_tiny() -> VisionEncoder.Config:
    """An encoder of 0.5M parameters without a class token, for embedded pictures at 32 px."""
    cfg = VisionEncoder.default_config().set(
        image_size=32,
        patch_size=4,
        model_dim=96,
        num_layers=4,
        num_heads=4,
        hidden_dim=384,
        pixel_mean=(0.3, 0.3, 0.3),
        pixel_std=(0.25, 0.25, 0.25),
    )
    cfg.positions.init_std = 0.1
    return cfg


def aimv2_l14(pattern: Pattern = Pattern.BIDIRECTIONAL) -> VisionEncoder.Config:
    """AIMv2's ViT-L/14 (arXiv 2411.14402): 309M parameters, RMSNorm and SwiGLU."""
    norm = RMSNorm.default_config()
    cfg = VisionEncoder.default_config().set(
        image_size=224,
        patch_size=14,
        model_dim=1024,
        num_layers=24,
        num_heads=8,
        # 2/3 of 4 x 1024, rounded up to a multiple of 256.
        hidden_dim=2816,
        pixel_mean=_IMAGENET_MEAN,
        pixel_std=_IMAGENET_STD,
        patch_norm=norm.clone(),
        final_norm=norm.clone(),
    )
    cfg.patch_embedding.bias = True
    cfg.stack.layer.attention.set(pattern=pattern, bias=False)
    cfg.stack.layer.set(feed_forward=GatedFeedForward.default_config(), norm=norm.clone())
    return cfg


def _clip(image_size: int, activation: Activation) -> VisionEncoder.Config:
    # OpenAI's encoders and DFN-5B's at 378 px were trained with QuickGELU, open_clip's ViT-H/14
    # with GELU.
    cfg = VisionEncoder.default_config().set(
        image_size=image_size,
        patch_size=14,
        class_token=ClassToken.default_config(),
        pre_norm=LayerNorm.default_config().set(eps=1e-5),
        final_norm=None,
    )
    cfg.stack.layer.norm.eps = 1e-5
    cfg.stack.layer.feed_forward.activation = activation
    return cfg


def _aim(pattern: Pattern) -> VisionEncoder.Config:
    # As in apple/ml-aim: biases in the patch embedding and in LayerNorm but not in the blocks, and
    # ImageNet's normalization. Pre-training uses the pattern PREFIX; afterwards, each patch attends
    # to all patches.
    cfg = VisionEncoder.default_config().set(
        image_size=224,
        patch_size=14,
        pixel_mean=_IMAGENET_MEAN,
        pixel_std=_IMAGENET_STD,
        patch_norm=LayerNorm.default_config(),
        positions=SinCosPositions.default_config(),
    )
    cfg.patch_embedding.bias = True
    cfg.stack.layer.attention.set(pattern=pattern, bias=False)
    cfg.stack.layer.feed_forward.up.bias = False
    cfg.stack.layer.feed_forward.down.bias = False
    return cfg
