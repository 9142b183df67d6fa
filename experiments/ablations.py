"""One-line differences from the ablation base `mm1_1b` (MM1, section 3.1).

python -m mm1_jax.launch --config=mm1_1b_vit_h14_336
python -m mm1_jax.launch --config=mm1_1b_aim_600m
"""

import functools
from collections.abc import Callable

from experiments import vision_encoders
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
# The suffix of a name; CLIP's encoders have QuickGELU unless it says otherwise.
ACTIVATIONS = {"": Activation.QUICK_GELU, "_gelu": Activation.GELU}


def with_encoder(make_encoder: Callable[[], VisionEncoder.Config]) -> Experiment.Config:
    """`mm1_1b` with another vision encoder."""
    cfg = mm1_1b()
    cfg.model.vision_encoder = make_encoder()
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
        f"mm1_1b_{name}": functools.partial(with_encoder, make) for name, make in encoders.items()
    }
