"""One-line differences from the ablation base `mm1_1b` (MM1, sections 3.1 and 3.2).

python -m mm1_jax.launch --config=mm1_1b_vit_h14_336
python -m mm1_jax.launch --config=mm1_1b_aim_600m
python -m mm1_jax.launch --config=mm1_1b_mix_66_33
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from experiments import mixtures, vision_encoders
from experiments.pretrain import mm1_1b
from experiments.vision_encoders import vit_h14, vit_l14
from mm1_jax.experiment import Experiment
from mm1_jax.layers.feed_forward import Activation
from mm1_jax.models.vision_encoder import VisionEncoder


def with_encoder(
    make_encoder: Callable[..., VisionEncoder.Config], *arguments: Any
) -> Experiment.Config:
    """`mm1_1b` with another vision encoder."""
    cfg = mm1_1b()
    cfg.model.vision_encoder = make_encoder(*arguments)
    return cfg


def with_mix(captions: int, interleaved: int) -> Experiment.Config:
    """`mm1_1b` with other shares of captions and interleaved pages, and no text.

    Figure 5 of the paper.
    """
    cfg = mm1_1b()
    for stream, weight in zip(cfg.input.streams, (captions, interleaved, 0), strict=True):
        stream.weight = weight
    return cfg


def with_synthetic_captions() -> Experiment.Config:
    """`mm1_1b` with 7% of its captions from `captions_synthetic`; the paper's are from VeCap."""
    cfg = mm1_1b()
    cfg.input.streams = mixtures.add_synthetic_captions(cfg.input.streams)
    return cfg


def with_filled_captions() -> Experiment.Config:
    """`mm1_1b` with text in the empty positions of caption rows."""
    cfg = mm1_1b()
    cfg.input.streams = mixtures.fill_captions(cfg.input.streams)
    return cfg


def named_configs() -> dict[str, Callable[[], Experiment.Config]]:
    # CLIP's own activation is QuickGELU.
    return {
        "mm1_1b_aim_600m": partial(with_encoder, vision_encoders.aim_600m),
        "mm1_1b_aim_1b": partial(with_encoder, vision_encoders.aim_1b),
        "mm1_1b_aim_3b": partial(with_encoder, vision_encoders.aim_3b),
        "mm1_1b_vit_l14_224": partial(with_encoder, vit_l14, 224),
        "mm1_1b_vit_l14_224_gelu": partial(with_encoder, vit_l14, 224, Activation.GELU),
        "mm1_1b_vit_l14_336": partial(with_encoder, vit_l14, 336),
        "mm1_1b_vit_l14_336_gelu": partial(with_encoder, vit_l14, 336, Activation.GELU),
        "mm1_1b_vit_l14_378": partial(with_encoder, vit_l14, 378),
        "mm1_1b_vit_l14_378_gelu": partial(with_encoder, vit_l14, 378, Activation.GELU),
        "mm1_1b_vit_h14_224": partial(with_encoder, vit_h14, 224),
        "mm1_1b_vit_h14_224_gelu": partial(with_encoder, vit_h14, 224, Activation.GELU),
        "mm1_1b_vit_h14_336": partial(with_encoder, vit_h14, 336),
        "mm1_1b_vit_h14_336_gelu": partial(with_encoder, vit_h14, 336, Activation.GELU),
        "mm1_1b_vit_h14_378": partial(with_encoder, vit_h14, 378),
        "mm1_1b_vit_h14_378_gelu": partial(with_encoder, vit_h14, 378, Activation.GELU),
        "mm1_1b_mix_100_0": partial(with_mix, 1, 0),
        "mm1_1b_mix_66_33": partial(with_mix, 2, 1),
        "mm1_1b_mix_50_50": partial(with_mix, 1, 1),
        "mm1_1b_mix_33_66": partial(with_mix, 1, 2),
        "mm1_1b_mix_0_100": partial(with_mix, 0, 1),
        "mm1_1b_synthetic_captions": with_synthetic_captions,
        "mm1_1b_filled_captions": with_filled_captions,
    }
