"""Vision encoders: resolution, size, loss and data (MM1, table 1).

    python -m mm1_jax run_study --study=encoder

Each encoder is trained once per seed on captioned pictures of the small world, by CLIP or by AIM,
and an MM1 starts from it. As with AIM in the paper, encoders differ in what they are trained on
too: AIM reads no captions.
"""

from collections.abc import Callable

from experiments import vision_encoders
from experiments.studies._small_world import MINUTES, STEPS, claim, metrics, small_world
from experiments.tiny_encoders import aim_tiny, clip_tiny
from mm1_jax.checkpoints.initial_weights import InitialWeights
from mm1_jax.data.corpora import world_records
from mm1_jax.data.corpora.captions import CaptionChoice
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.data.mixture import CorpusWeight
from mm1_jax.experiment import Experiment
from mm1_jax.layers.attention import Pattern
from mm1_jax.models.vision_encoder import VisionEncoder
from mm1_jax.studies.study import Arm, Stage, Study

# Steps of an encoder, of 128 pictures.
ENCODER_STEPS = 600
_LARGE, _SMALL = {"model_dim": 96, "hidden_dim": 384}, {"model_dim": 48, "hidden_dim": 192}
# Encoder and start of each arm: pixels, dims, loss, and the share of synthetic captions.
ARMS = {
    "base": (64, _LARGE, "clip", 0.3),
    "fewer_pixels": (32, _LARGE, "clip", 0.3),
    "smaller": (64, _SMALL, "clip", 0.3),
    "aim": (64, _LARGE, "aim", 0.3),
    "other_data": (64, _LARGE, "clip", 0.0),
    "untrained": (64, _LARGE, None, 0.0),
}
_TEXTS = {
    "base": "CLIP, 64 pixels, width 96",
    "fewer_pixels": "CLIP, 32 pixels, width 96",
    "smaller": "CLIP, 64 pixels, width 48",
    "aim": "AIM, 64 pixels, width 96",
    "other_data": "CLIP, no synthetic captions",
    "untrained": "random, 64 pixels, width 96",
}


def study() -> Study:
    start = "trainer.initial_weights.vision_encoder.path"

    def overrides(name: str) -> dict[str, str]:
        return {} if ARMS[name][2] is None else {start: f"{{encoder_{name}}}"}

    shots = ("shots_0", "shots_8")
    reasons = {
        "fewer_pixels": "more pixels help",
        "smaller": "a larger encoder helps",
        "aim": "CLIP helps more than AIM",
        "other_data": "synthetic captions of the encoder help",
        "untrained": "a trained encoder helps",
    }
    return Study(
        design="Resolution matters most, then size and loss of the encoder, then its data: "
        f"mm1_small_world, for {STEPS} steps, from encoders of {ENCODER_STEPS} steps that differ "
        "in one factor each. Metrics are means over the benchmarks of the small world, of which "
        "0.02 is of interest.",
        stages=[
            Stage(f"encoder_{name}", f"encoder_{name}", minutes=10.0)
            for name, (_, _, loss, _) in ARMS.items()
            if loss is not None
        ],
        arms=[
            Arm(name, f"world_{name}", overrides(name), MINUTES, text)
            for name, text in _TEXTS.items()
        ],
        reference="base",
        metrics=metrics(),
        claims=[
            *(
                claim(f"{text}: {metric}", metric, "base", name)
                for name, text in reasons.items()
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


def encoder(name: str) -> Experiment.Config:
    """The training of the encoder of an arm."""
    pixels, dims, loss, synthetic_share = ARMS[name]
    corpus = world_records.corpus(Kind.CAPTIONS, synthetic_share=synthetic_share)
    cfg = clip_tiny() if loss == "clip" else aim_tiny()
    pattern = Pattern.BIDIRECTIONAL if loss == "clip" else Pattern.PREFIX
    cfg.model.vision_encoder = _vision_encoder(pixels, dims, loss, pattern)
    if loss == "clip":
        corpus.to_document = CaptionChoice.default_config()
    cfg.input.streams[0].corpora = [CorpusWeight().set(corpus=corpus)]
    cfg.input.set(batch_size=128, max_sequence_length=64 if loss == "clip" else 0)
    cfg.trainer.max_steps = ENCODER_STEPS
    cfg.evals = {"held_out_loss": cfg.evals["held_out_loss"]}
    return cfg


def world(name: str) -> Experiment.Config:
    """An MM1 with the encoder of an arm."""
    pixels, dims, loss, _ = ARMS[name]
    cfg = small_world()
    cfg.model.vision_encoder = _vision_encoder(pixels, dims, loss or "clip", Pattern.BIDIRECTIONAL)
    if loss is not None:
        weights = InitialWeights.default_config().set(path=f"runs/encoder_{name}")
        cfg.trainer.initial_weights = {"vision_encoder": weights}
    return cfg


def _vision_encoder(
    pixels: int, dims: dict[str, int], loss: str, pattern: Pattern
) -> VisionEncoder.Config:
    if loss == "aim":
        cfg = vision_encoders.aim_tiny(pattern)
    else:
        cfg = vision_encoders.clip_tiny()
        cfg.positions.init_std = 0.4
    # 16 patches at either size.
    return cfg.set(image_size=pixels, patch_size=pixels // 4, num_layers=3, num_heads=4, **dims)


def named_configs() -> dict[str, Callable[[], Experiment.Config]]:
    encoders = [name for name, (_, _, loss, _) in ARMS.items() if loss is not None]
    return {
        **{f"encoder_{name}": lambda name=name: encoder(name) for name in encoders},
        **{f"world_{name}": lambda name=name: world(name) for name in ARMS},
    }
