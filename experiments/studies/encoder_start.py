"""An MM1 that starts from a trained vision encoder has a lower loss after 100 steps, or after 300.

    python -m mm1_jax run_study --study=encoder_start

`clip_tiny` and `aim_tiny` are trained once per seed. `mm1_tiny`, with an encoder of the same size,
then trains for 100 steps of its schedule, from these encoders or from random ones. After so few
steps it does not read digits yet, so the encoder of `aim_tiny`, which is worth most for them, has
arms of 300 steps too. What encoders are worth after a full pre-training is another question.
"""

from collections.abc import Callable

from experiments import pretrain, vision_encoders
from mm1_jax.checkpoints.initial_weights import InitialWeights
from mm1_jax.experiment import Experiment
from mm1_jax.models.vision_encoder import VisionEncoder
from mm1_jax.studies.study import Arm, Claim, Metric, Score, Stage, Study

STEPS, MORE_STEPS = 100, 300
_CORPORA = ("digits", "scenes")
_ABOUT_PICTURES = ("captions", "questions", "interleaved")


def study() -> Study:
    def name_of(encoder: str, start: str, steps: int) -> str:
        return f"{encoder}_{start}" + ("" if steps == STEPS else f"_{steps}")

    def arms(encoder: str, size: str, steps: int = STEPS) -> list[Arm]:
        start = {"trainer.initial_weights.vision_encoder.path": f"{{{encoder}_tiny}}"}
        length = {} if steps == STEPS else {"trainer.max_steps": str(steps)}
        minutes, text = 1.5 + steps / 200, f"{steps} steps"
        return [
            Arm(
                name_of(encoder, "start", steps),
                f"from_{encoder}",
                start | length,
                minutes,
                f"{size}, trained, {text}",
            ),
            Arm(
                name_of(encoder, "random", steps),
                f"with_{encoder}_encoder",
                length,
                minutes,
                f"{size}, random, {text}",
            ),
        ]

    def claim(encoder: str, steps: int = STEPS) -> Claim:
        text = f"the encoder of {encoder}_tiny lowers the loss after {steps} steps"
        higher, lower = (
            Score(name_of(encoder, start, steps), "loss") for start in ("random", "start")
        )
        return Claim(text, higher, lower, smallest=0.02)

    def held_out(kinds: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"held_out_loss/0/{name}_{kind}" for kind in kinds for name in _CORPORA)

    return Study(
        design="A trained vision encoder gives an MM1 a better start: mm1_tiny, with an encoder of "
        "the size of clip_tiny's or aim_tiny's, trains for the first 100 steps of its schedule "
        f"from this encoder, or from random weights; with aim_tiny's also for {MORE_STEPS}. The "
        "metric is the mean held-out loss of captions, questions and pages, over digits and "
        "scenes. A difference of 0.02 is of interest.",
        stages=[
            Stage("clip_tiny", "clip_tiny", minutes=15.0),
            Stage("aim_tiny", "aim_tiny", minutes=15.0),
        ],
        arms=[
            *arms("clip", "64 patches of 4 pixels"),
            *arms("aim", "64 patches of 8 pixels"),
            *arms("aim", "64 patches of 8 pixels", MORE_STEPS),
        ],
        reference="clip_random",
        metrics=[
            Metric("loss", held_out(_ABOUT_PICTURES), "held-out loss of what pictures show"),
            Metric("text_loss", held_out(("text",)), "held-out loss of text"),
        ],
        claims=[claim("clip"), claim("aim"), claim("aim", MORE_STEPS)],
        full_size="`mm1_1b_aim_600m` and the other configs of `experiments/vision_encoders.py`, "
        "from runs of `clip_vit_l14` or `aim_600m`.",
    )


def with_clip_encoder() -> Experiment.Config:
    """The first steps of `mm1_tiny` with an encoder of the size of `clip_tiny`'s."""
    return _first_steps(vision_encoders.clip_tiny())


def with_aim_encoder() -> Experiment.Config:
    """The first steps of `mm1_tiny` with an encoder of the size of `aim_tiny`'s."""
    return _first_steps(vision_encoders.aim_tiny())


def from_clip() -> Experiment.Config:
    """`with_clip_encoder` from the encoder of a run of `clip_tiny`."""
    return _from(with_clip_encoder(), "clip_tiny")


def from_aim() -> Experiment.Config:
    """`with_aim_encoder` from the encoder of a run of `aim_tiny`."""
    return _from(with_aim_encoder(), "aim_tiny")


def _from(cfg: Experiment.Config, name: str) -> Experiment.Config:
    weights = InitialWeights.default_config().set(path=f"runs/{name}")
    cfg.trainer.initial_weights = {"vision_encoder": weights}
    return cfg


def _first_steps(encoder: VisionEncoder.Config) -> Experiment.Config:
    cfg = pretrain.mm1_tiny()
    cfg.trainer.optimizer.decay_steps = cfg.trainer.max_steps
    cfg.trainer.max_steps = STEPS
    cfg.model.vision_encoder = encoder
    cfg.evals = {"held_out_loss": cfg.evals["held_out_loss"]}
    return cfg


def named_configs() -> dict[str, Callable[[], Experiment.Config]]:
    configs = (with_clip_encoder, with_aim_encoder, from_clip, from_aim)
    return {make.__name__: make for make in configs}
