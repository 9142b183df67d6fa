"""One-line differences from the ablation base `mm1_1b` (MM1, sections 3.1 and 3.2).

python -m mm1_jax.launch --config=mm1_1b_vit_h14_336
python -m mm1_jax.launch --config=mm1_1b_aim_600m
python -m mm1_jax.launch --config=mm1_1b_mix_66_33
"""

import functools
from collections.abc import Callable

from experiments import mixtures, vision_encoders
from experiments.pretrain import mm1_1b
from mm1_jax.experiment import Experiment
from mm1_jax.layers.feed_forward import Activation
from mm1_jax.models.vision_encoder import VisionEncoder

AIM = {
    "aim_600m": vision_encoders.aim_600m,
    "aim_1b": vision_encoders.aim_1b,
    "aim_3b": vision_encoders.aim_3b,
}
CLIP = {"vit_l14": vision_encoders.vit_l14, "vit_h14": vision_encoders.vit_h14}
# Activation by suffix of the config's name; CLIP's own is QuickGELU.
ACTIVATIONS = {"": Activation.QUICK_GELU, "_gelu": Activation.GELU}


def with_encoder(make_encoder: Callable[[], VisionEncoder.Config]) -> Experiment.Config:
    """`mm1_1b` with another vision encoder."""
    cfg = mm1_1b()
    cfg.model.vision_encoder = make_encoder()
    return cfg


# Weights of rows of captions, interleaved pages and text (figure 5).
MIXES = {
    "100_0": (1, 0, 0),
    "66_33": (2, 1, 0),
    "50_50": (1, 1, 0),
    "33_66": (1, 2, 0),
    "0_100": (0, 1, 0),
}


def with_mix(weights: tuple[int, int, int]) -> Experiment.Config:
    """`mm1_1b` with other shares of captions and interleaved pages, and no text."""
    cfg = mm1_1b()
    for stream, weight in zip(cfg.input.streams, weights, strict=True):
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
    encoders: dict[str, Callable[[], VisionEncoder.Config]] = dict(AIM)
    for name, make in CLIP.items():
        for image_size in (224, 336, 378):
            for suffix, activation in ACTIVATIONS.items():
                encoders[f"{name}_{image_size}{suffix}"] = functools.partial(
                    make, image_size, activation
                )
    return {
        **{f"mm1_1b_{name}": functools.partial(with_encoder, e) for name, e in encoders.items()},
        **{f"mm1_1b_mix_{name}": functools.partial(with_mix, m) for name, m in MIXES.items()},
        "mm1_1b_synthetic_captions": with_synthetic_captions,
        "mm1_1b_filled_captions": with_filled_captions,
    }
