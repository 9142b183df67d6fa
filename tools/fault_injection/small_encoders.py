"""Runs of a CLIP and an AIM that take seconds: `clip_tiny` and `aim_tiny` at the least sizes."""

from typing import Any

from small_run import SmallRun

from experiments import tiny_encoders
from mm1_jax.data.random_view import ColorJitter, RandomView

_LEAST = {"model_dim": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 32}


def small_clip() -> SmallRun.Config:
    """Draws captions, views and kept patches from the seeds of records."""
    cfg = _small(tiny_encoders.clip_tiny())
    cfg.model.text_encoder.set(**_LEAST)
    cfg.model.set(features_dim=16, patch_dropout=0.5)
    return cfg


def small_aim() -> SmallRun.Config:
    """Draws views and prefixes from the seeds of records."""
    cfg = _small(tiny_encoders.aim_tiny())
    cfg.model.pixel_head.set(model_dim=16, hidden_dim=32)
    return cfg


def _small(tiny: Any) -> SmallRun.Config:
    """Twelve steps of eight pictures, with a checkpoint every two."""
    cfg = SmallRun.default_config().set(model=tiny.model, input=tiny.input, trainer=tiny.trainer)
    encoder = cfg.model.vision_encoder
    encoder.set(**_LEAST, image_size=4 * encoder.patch_size)
    view = RandomView.default_config().set(flip=0.5, colors=ColorJitter.default_config())
    cfg.input.set(batch_size=8, augmentation=view)
    for entry in cfg.input.streams[0].corpora:
        entry.corpus.source.num_records = 64
    cfg.trainer.max_steps = 12
    cfg.trainer.optimizer.warmup_steps = 2
    cfg.trainer.checkpointer.every_n_steps = 2
    return cfg


def named_configs() -> dict[str, Any]:
    return {f.__name__: f for f in (small_clip, small_aim)}
