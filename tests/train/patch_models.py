"""The smallest AIM and AIMv2, and a batch for them."""

import numpy as np

from experiments.vision_encoders import aim_600m, aimv2_l14
from mm1_jax.batch import ImageTextBatch
from mm1_jax.layers.attention import Pattern
from mm1_jax.layers.norm import RMSNorm
from mm1_jax.models.aim import AIM, AIMv2
from mm1_jax.models.decoder import Decoder

PATCH, SIZE, ROWS, LENGTH, VOCAB_SIZE = 4, 12, 8, 6, 32
NUM_PATCHES, NUM_PIXELS = (SIZE // PATCH) ** 2, 3 * PATCH**2
ENCODER = {
    "image_size": SIZE,
    "patch_size": PATCH,
    "model_dim": 8,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 16,
}


def aim() -> AIM.Config:
    cfg = AIM.default_config().set(vision_encoder=aim_600m(Pattern.PREFIX).set(**ENCODER))
    cfg.pixel_head.set(model_dim=16, num_layers=2, hidden_dim=24)
    return cfg


def aimv2() -> AIMv2.Config:
    decoder = Decoder.default_config().set(
        vocab_size=VOCAB_SIZE,
        model_dim=16,
        num_layers=2,
        num_heads=2,
        hidden_dim=24,
        norm=RMSNorm.default_config(),
    )
    decoder.stack.layer.attention.rotary = None
    return AIMv2.default_config().set(
        vision_encoder=aimv2_l14(Pattern.PREFIX).set(**ENCODER),
        decoder=decoder,
        max_text_length=LENGTH,
    )


def draw_batch(seed: int = 0) -> ImageTextBatch:
    """Draws rows of two corpora with texts of different lengths; the third row holds no record."""
    rng = np.random.default_rng(seed)
    lengths = np.asarray([6, 2, 0, 4, 5, 3, 2, 6], np.int32)
    tokens = rng.integers(1, VOCAB_SIZE, (ROWS, LENGTH), dtype=np.int32)
    return ImageTextBatch(
        images=rng.integers(0, 256, (ROWS, SIZE, SIZE, 3), dtype=np.uint8),
        tokens=np.where(np.arange(LENGTH) < lengths[:, None], tokens, 0).astype(np.int32),
        lengths=lengths,
        row_seeds=rng.integers(0, 2**32, ROWS, dtype=np.uint32),
        corpus_ids=np.asarray([0, 1, -1, 0, 1, 1, 0, 1], np.int32),
    )
