"""Mixture of experts against the dense decoder (MM1, tables 3 and 4).

python -m mm1_jax run_study --study=experts
"""

from collections.abc import Callable

from experiments.small_world import mm1_small_world
from experiments.studies._small_world import STEPS, arm, claims, metrics
from mm1_jax.experiment import Experiment
from mm1_jax.layers.moe import MoE
from mm1_jax.studies.study import Study


def study() -> Study:
    return Study(
        design="Experts beat the dense decoder at equal width and steps: mm1_small_world, for "
        f"{STEPS} steps, dense, or with four experts in every second layer, of which a token uses "
        "two. As in the paper, an expert has the size of the dense layer, so a sparse layer does "
        "twice the work. Metrics are means over the benchmarks of the small world and of its "
        "texts, of which 0.02 is of interest.",
        arms=[arm("dense", "dense"), arm("sparse", "4 experts, top-2", "sparse")],
        reference="dense",
        metrics=metrics(),
        claims=claims(
            "experts help: {}", ("shots_0", "shots_4", "shots_8", "text"), "sparse", "dense"
        ),
        full_size="`mm1_3b` and `mm1_3b_moe`, `mm1_7b` and `mm1_7b_moe`.",
    )


def sparse() -> Experiment.Config:
    """`mm1_small_world` with four experts in every second layer, two per token."""
    cfg = mm1_small_world()
    cfg.model.decoder.set(moe=MoE.default_config().set(num_experts=4), moe_every=2)
    return cfg


def named_configs() -> dict[str, Callable[[], Experiment.Config]]:
    return {"sparse": sparse}
