"""Vision encoders: resolution, size, loss and data (MM1, table 1).

    python -m mm1_jax run_study --study=encoder

Each encoder is trained once per seed on captioned pictures of the small world, by CLIP or by AIM,
and an MM1 starts from it. As with AIM in the paper, encoders differ in what they are trained on
too: AIM reads no captions.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

from experiments import vision_encoders
from experiments.small_world import mm1_small_world
from experiments.studies._small_world import STEPS, arm, claim, metrics
from experiments.tiny_encoders import aim_tiny, clip_tiny
from mm1_jax.checkpoints.initial_weights import InitialWeights
from mm1_jax.data.corpora import world_records
from mm1_jax.data.corpora.captions import CaptionChoice
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.data.mixture import CorpusWeight
from mm1_jax.experiment import Experiment
from mm1_jax.layers.attention import Pattern
from mm1_jax.models.vision_encoder import VisionEncoder
from mm1_jax.studies.study import Stage, Study

# Steps of an encoder, of 128 pictures.
ENCODER_STEPS = 600
_LARGE, _SMALL = {"model_dim": 96, "hidden_dim": 384}, {"model_dim": 48, "hidden_dim": 192}


class Encoder(NamedTuple):
    """The encoder of an arm and its training.

    Attributes:
        text: Description for the report.
        reason: Claim that the encoder of `base` is better, for the others.
        loss: CLIP or AIM; None leaves it as it is drawn.
        synthetic_share: Share of synthetic captions.
    """

    text: str
    reason: str = ""
    pixels: int = 64
    dims: dict[str, int] = _LARGE
    loss: Literal["clip", "aim"] | None = "clip"
    synthetic_share: float = 0.3


BASE = "base"
ENCODERS = {
    BASE: Encoder("CLIP, 64 pixels, width 96"),
    "fewer_pixels": Encoder("CLIP, 32 pixels, width 96", "more pixels help", pixels=32),
    "smaller": Encoder("CLIP, 64 pixels, width 48", "a larger encoder helps", dims=_SMALL),
    "aim": Encoder("AIM, 64 pixels, width 96", "CLIP helps more than AIM", loss="aim"),
    "other_data": Encoder(
        "CLIP, no synthetic captions", "synthetic captions of the encoder help", synthetic_share=0.0
    ),
    "untrained": Encoder("random, 64 pixels, width 96", "a trained encoder helps", loss=None),
}
TRAINED = [name for name, encoder in ENCODERS.items() if encoder.loss is not None]


def study() -> Study:
    start = "trainer.initial_weights.vision_encoder.path"
    shots = ("shots_0", "shots_8")
    return Study(
        design="Resolution matters most, then size and loss of the encoder, then its data: "
        f"mm1_small_world, for {STEPS} steps, from encoders of {ENCODER_STEPS} steps that differ "
        "in one factor each. Metrics are means over the benchmarks of the small world, of which "
        "0.02 is of interest.",
        stages=[Stage(f"encoder_{name}", f"encoder_{name}", minutes=10.0) for name in TRAINED],
        arms=[
            arm(
                name,
                encoder.text,
                f"world_{name}",
                {start: f"{{encoder_{name}}}"} if name in TRAINED else {},
            )
            for name, encoder in ENCODERS.items()
        ],
        reference=BASE,
        metrics=metrics(),
        claims=[
            *(
                claim(f"{encoder.reason}: {metric}", metric, BASE, name)
                for name, encoder in ENCODERS.items()
                if name != BASE
                for metric in shots
            ),
            *(
                claim(f"pixels matter more than {what}: {metric}", metric, name, "fewer_pixels")
                for name, what in (("smaller", "size"), ("aim", "loss"), ("other_data", "data"))
                for metric in shots
            ),
        ],
        full_size="`mm1_1b_vit_l14_224`, `_336`, `mm1_1b_vit_h14_378` and `mm1_1b_aim_600m` of "
        "`experiments/ablations.py`, from runs of `clip_vit_l14`, `clip_vit_h14` and `aim_600m`.",
    )


def encoder_training(name: str) -> Experiment.Config:
    """The training of the encoder of an arm."""
    encoder = ENCODERS[name]
    is_clip = encoder.loss == "clip"
    corpus = world_records.corpus(Kind.CAPTIONS, synthetic_share=encoder.synthetic_share)
    if is_clip:
        corpus.to_document = CaptionChoice.default_config()
    cfg = clip_tiny() if is_clip else aim_tiny()
    cfg.model.vision_encoder = _vision_encoder(encoder)
    if not is_clip:
        cfg.model.vision_encoder.stack.layer.attention.pattern = Pattern.PREFIX
    cfg.input.streams[0].corpora = [CorpusWeight().set(corpus=corpus)]
    cfg.input.set(batch_size=128, max_sequence_length=64 if is_clip else 0)
    cfg.trainer.max_steps = ENCODER_STEPS
    cfg.evals = {"held_out_loss": cfg.evals["held_out_loss"]}
    return cfg


def world(name: str) -> Experiment.Config:
    """An MM1 with the encoder of an arm."""
    cfg = mm1_small_world()
    cfg.model.vision_encoder = _vision_encoder(ENCODERS[name])
    if name in TRAINED:
        weights = InitialWeights.default_config().set(path=f"runs/encoder_{name}")
        cfg.trainer.initial_weights = {"vision_encoder": weights}
    return cfg


def _vision_encoder(encoder: Encoder) -> VisionEncoder.Config:
    if encoder.loss == "aim":
        cfg = vision_encoders.aim_tiny()
    else:
        cfg = vision_encoders.clip_tiny()
        cfg.positions.init_std = 0.4
    # 16 patches at either size.
    pixels = {"image_size": encoder.pixels, "patch_size": encoder.pixels // 4}
    return cfg.set(num_layers=3, num_heads=4, **pixels, **encoder.dims)


def named_configs() -> dict[str, Callable[[], Experiment.Config]]:
    return {
        **{f"encoder_{name}": partial(encoder_training, name) for name in TRAINED},
        **{f"world_{name}": partial(world, name) for name in ENCODERS},
    }
