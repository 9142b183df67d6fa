"""More pre-training makes fine-tuning better (MM1, figure 7c), on the embedded pictures.

    python -m mm1_jax run_study --study=sft_pretraining

A fine-tuning as of `mm1_tiny_chat`, of 500 steps, starts from the checkpoints of `mm1_tiny` after
about 0, 25, 50 and 100% of its 1,750 steps. They are checkpoints of one run, so the earlier ones
have a higher learning rate behind them, as in the paper.
"""

from collections.abc import Callable

from experiments.tiny_chat import mm1_tiny_chat
from mm1_jax.experiment import Experiment
from mm1_jax.studies.study import Arm, Claim, Metric, Score, Stage, Study

# Checkpoints are saved every 20 steps; those at multiples of this number stay.
KEPT_STEPS = 440
# Fewer than of pre-training: a long fine-tuning would be the pre-training of the arms without one.
MAX_STEPS = 500
START = "trainer.initial_weights.model"


def study() -> Study:
    def arm(name: str, step: int, text: str) -> Arm:
        start = {f"{START}.path": "{mm1_tiny}", f"{START}.step": str(step)}
        return Arm(name, "pretrained", start, 3.5, text)

    def claim(text: str, higher: str, lower: str, metric: str) -> Claim:
        return Claim(text, Score(higher, metric), Score(lower, metric), 0.02)

    return Study(
        design="More pre-training makes fine-tuning better: the same fine-tuning on instructions "
        "starts from checkpoints of mm1_tiny after 0, 25, 50 and 100% of pre-training. The metrics "
        "are the right answers and the answers in the form that is asked for, over held-out "
        "instructions of seven forms, scored apart. A difference of 0.02 is of interest.",
        stages=[
            Stage(
                "mm1_tiny",
                "mm1_tiny",
                {"trainer.checkpointer.keep_every_n_steps": str(KEPT_STEPS)},
                minutes=9.0,
            )
        ],
        arms=[
            Arm("from_scratch", "from_scratch", {}, 3.5, "0% of pre-training"),
            arm("quarter", KEPT_STEPS, "25%"),
            arm("half", 2 * KEPT_STEPS, "50%"),
            arm("whole", 1750, "100%"),
        ],
        reference="from_scratch",
        metrics=[
            Metric("accuracy", ("instructions/0/accuracy",), "right answers to instructions"),
            Metric("well_formed", ("instructions/0/well_formed",), "answers in the asked form"),
            Metric("scenes_vqa", ("scenes_vqa/0/accuracy",), "MM1's prompt of pre-training"),
            Metric("digits_vqa", ("digits_vqa/0/accuracy",), "MM1's prompt of pre-training"),
        ],
        claims=[
            claim("a quarter is better than none", "quarter", "from_scratch", "accuracy"),
            claim("half is better than a quarter", "half", "quarter", "accuracy"),
            claim("all is better than half", "whole", "half", "accuracy"),
            claim("all is better than none", "whole", "from_scratch", "accuracy"),
            claim("all keeps the form better than none", "whole", "from_scratch", "well_formed"),
        ],
        full_size="`mm1_3b_chat` from checkpoints of a run of `mm1_3b`, by the field `step` of "
        "its initial weights.",
    )


def pretrained() -> Experiment.Config:
    """A short fine-tuning of `mm1_tiny`, tested with prompts without exemplars."""
    cfg = mm1_tiny_chat()
    cfg.trainer.max_steps = MAX_STEPS
    cfg.evals = {name: cfg.evals[name] for name in ("instructions", "digits_vqa", "scenes_vqa")}
    for benchmark in cfg.evals.values():
        benchmark.set(shots=(0,), blank_shots=())
    return cfg


def from_scratch() -> Experiment.Config:
    """The same fine-tuning without pre-training."""
    cfg = pretrained()
    cfg.trainer.initial_weights = {}
    return cfg


def named_configs() -> dict[str, Callable[[], Experiment.Config]]:
    return {make.__name__: make for make in (pretrained, from_scratch)}
