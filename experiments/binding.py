"""Binding of new names to pictures, which appears by a curriculum.

    python -m mm1_jax.launch --config=mm1_tiny
    python -m mm1_jax.launch --config=mm1_tiny_binding
    python -m mm1_jax.launch --config=mm1_tiny_binding_direct

A page shows eight scenes, each followed by the made-up name of its shape or color. To predict a
name from the second time on, a model must find the earlier picture of the same shape or color and
copy the name behind it. `mm1_tiny_binding` begins with names right behind their pictures, then puts
two words between them, then half of the wording of the few-shot questions, and then all of it. It
is one run, so the optimizer keeps its state. `mm1_tiny_binding_direct` reads as many names in the
final wording from the start. One shape and one color occur on no page; `name_binding_new` asks for
these.

The vision encoder is that of a trained `mm1_tiny` and is frozen; connector and decoder are new.
docs/evaluation.md has the results, `experiments/studies/binding.py` the design of the comparison.
"""

from collections.abc import Callable
from typing import Any

from experiments import mixtures, sizes
from experiments.mixtures import HELD_OUT_VALUES
from mm1_jax.checkpoints.initial_weights import InitialWeights
from mm1_jax.data.input import Input
from mm1_jax.data.mixture import Stage
from mm1_jax.evals.benchmarks.scenes import name_binding, swapped_name_binding
from mm1_jax.evals.evaluator import EveryNSteps
from mm1_jax.experiment import Experiment
from mm1_jax.train.trainer import Trainer

# First steps of the stages after the first, and the number of steps.
TWO_WORDS, HALF_QUESTIONS, QUESTIONS, STEPS = 1750, 2250, 2750, 3500


def mm1_tiny_binding() -> Experiment.Config:
    """A decoder of 2 layers that learns to bind names by a curriculum, on `mm1_tiny`'s encoder."""
    cfg = _base()
    # Pages of earlier stages remain, so that what was learned on them is not lost at once.
    cfg.input.stages = [
        _stage(TWO_WORDS, no_words=1, two_words=3),
        _stage(HALF_QUESTIONS, no_words=0, two_words=1, half_questions=3),
        _stage(QUESTIONS, two_words=0, half_questions=1, questions=3),
    ]
    return cfg


def mm1_tiny_binding_direct() -> Experiment.Config:
    """`mm1_tiny_binding` with the wording of questions from the start."""
    cfg = _base()
    for stream in cfg.input.streams:
        stream.weight = int(stream.name == "questions")
    return cfg


def _base() -> Experiment.Config:
    model = sizes.tiny()
    model.decoder.set(model_dim=64, num_layers=2, num_heads=4, num_kv_heads=4, hidden_dim=192)
    cfg = Experiment.default_config().set(
        model=model,
        input=Input.default_config().set(
            streams=mixtures.names_from_pictures(),
            # A row has room for one page: eight pictures with the longest names.
            batch_size=64,
            max_sequence_length=160,
            max_images=8,
        ),
        trainer=Trainer.default_config().set(max_steps=STEPS),
        evals={
            "name_binding": _every(
                250, name_binding(held_out=HELD_OUT_VALUES).set(blank_shots=(4, 8))
            ),
            "name_binding_near": _every(
                250,
                name_binding(
                    "name_binding_near",
                    words="",
                    other_aspect="constant",
                    held_out=HELD_OUT_VALUES,
                ),
            ),
            "name_binding_new": name_binding(
                "name_binding_new", held_out=HELD_OUT_VALUES, named="held_out"
            ),
            "name_binding_swapped": swapped_name_binding(held_out=HELD_OUT_VALUES),
        },
    )
    weights = InitialWeights.default_config().set(path="runs/mm1_tiny")
    cfg.trainer.initial_weights = {"vision_encoder": weights}
    cfg.trainer.optimizer.set(
        learning_rate=2e-3,
        weight_decay=0.01,
        warmup_steps=100,
        final_fraction=1.0,  # A constant rate: the jump may come at any step.
        frozen=("vision_encoder",),
    )
    cfg.trainer.checkpointer.every_n_steps = 100
    return cfg


def _stage(from_step: int, **weights: int) -> Stage:
    return Stage().set(from_step=from_step, weights=weights)


def _every(n: int, benchmark: Any) -> Any:
    return benchmark.set(run=EveryNSteps.default_config().set(n=n))


def named_configs() -> dict[str, Callable[[], Experiment.Config]]:
    return {make.__name__: make for make in (mm1_tiny_binding, mm1_tiny_binding_direct)}
