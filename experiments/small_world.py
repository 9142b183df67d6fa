"""A world of small pictures, with a stand-in of the paper's benchmark set (docs/evaluation.md).

    python -m mm1_jax.launch --config=mm1_small_world
    python -m mm1_jax evaluate --checkpoint=runs/mm1_small_world --benchmarks=small_world

Everything is drawn from a seed, and nothing is downloaded. The second command reports
`small_world/SHOTS/score`, the mean over all benchmarks at a number of shots, as the paper does. In
a study, `Metric("4 shots", score_keys(4))` is that mean of the evaluations of the run itself, as a
fraction of 1.
"""

from collections.abc import Callable

from experiments import mixtures, sizes
from mm1_jax.data.input import Input
from mm1_jax.evals.benchmarks.registry import SMALL_WORLD, SMALL_WORLD_TEXT
from mm1_jax.evals.held_out_loss import HeldOutLoss
from mm1_jax.experiment import Experiment
from mm1_jax.train.trainer import Trainer


def mm1_small_world() -> Experiment.Config:
    """1.5M-parameter MM1 on the small world, with a stand-in of the paper's benchmark set."""
    benchmarks = {**SMALL_WORLD, **SMALL_WORLD_TEXT}
    cfg = Experiment.default_config().set(
        model=sizes.small_world(),
        input=Input.default_config().set(
            streams=mixtures.small_world(),
            batch_size=8,
            # Eight examples with their pictures take about as many positions.
            max_sequence_length=320,
            max_images=12,
        ),
        trainer=Trainer.default_config().set(max_steps=1500),
        evals={
            "held_out_loss": HeldOutLoss.default_config(),
            **{name: make() for name, make in benchmarks.items()},
        },
    )
    cfg.trainer.optimizer.set(warmup_steps=40)
    cfg.trainer.checkpointer.every_n_steps = 100
    return cfg


def score_keys(shots: int) -> tuple[str, ...]:
    """Returns the keys of a run's report whose mean is the score of the small world."""
    return tuple(
        f"{name}/{shots}/{make().headline or 'accuracy'}" for name, make in SMALL_WORLD.items()
    )


def text_score_keys() -> tuple[str, ...]:
    """Returns the keys of a run's report whose mean, in percent, is the score of its texts."""
    return tuple(f"{name}/0/{make().headline}" for name, make in SMALL_WORLD_TEXT.items())


def named_configs() -> dict[str, Callable[[], Experiment.Config]]:
    return {make.__name__: make for make in (mm1_small_world,)}
