"""In-context learning after training on interleaved pages, and after training on captions only.

MM1 finds that interleaved data improves few-shot answers and captions improve zero-shot answers
(section 3.2). Here, pages and few-shot examples give new names to shapes or colors, so that a model
can know a name only from its context:

    for name in mm1_tiny_names mm1_tiny_names_captions; do
        for seed in 0 1 2; do
            python -m mm1_jax.launch --config=$name --output_dir=runs/$name/$seed \\
                --config.trainer.seed=$seed --config.input.seed=$seed
        done
    done
    python -m mm1_jax compare_runs --metrics='scenes_names*,*/accuracy,*/exact_match' \\
        mixture='runs/mm1_tiny_names/*' captions='runs/mm1_tiny_names_captions/*'

Both configs train on the same number of rows; docs/evaluation.md has the results.
"""

from collections.abc import Callable

from experiments import mixtures
from experiments.pretrain import mm1_tiny
from mm1_jax.evals.benchmarks.scenes import scenes_names
from mm1_jax.evals.evaluator import EveryNSteps
from mm1_jax.experiment import Experiment


def mm1_tiny_names() -> Experiment.Config:
    """`mm1_tiny` on the mixture, with pages that give shapes and colors new names."""
    cfg = mm1_tiny()
    cfg.input.streams = mixtures.embedded_with_names()
    run = EveryNSteps.default_config().set(n=250)
    cfg.evals["scenes_names"] = scenes_names().set(run=run)
    cfg.trainer.max_steps = 1000
    return cfg


def mm1_tiny_names_captions() -> Experiment.Config:
    """`mm1_tiny_names` on captions and single questions only."""
    cfg = mm1_tiny_names()
    for stream in cfg.input.streams:
        stream.weight = int(stream.name == "captions")
    return cfg


def named_configs() -> dict[str, Callable[[], Experiment.Config]]:
    return {make.__name__: make for make in (mm1_tiny_names, mm1_tiny_names_captions)}
