"""Noise from the seed of sampling alone (MM1, appendix), and a null study.

    python -m mm1_jax run_study --study=sampling_seed

The arms are the same config with other seeds of sampling, so nothing separates them. A claim that
one is better than the other should be undecided or refuted. The intervals of the scores show how
large a difference a study can see.
"""

from experiments.studies._small_world import STEPS, arm, claims, metrics
from mm1_jax.studies.study import Study

_METRICS = ("shots_0", "shots_4", "shots_8", "text")


def study() -> Study:
    return Study(
        design="The seed of sampling alone moves scores: mm1_small_world, for "
        f"{STEPS} steps, with the same initial weights and other draws from the mixture. Metrics "
        "are means over the benchmarks of the small world and of its texts.",
        arms=[
            arm("draws_a", "seeds 10 to 12", overrides={"input.seed": "1{seed}"}),
            arm("draws_b", "seeds 20 to 22", overrides={"input.seed": "2{seed}"}),
        ],
        reference="draws_a",
        metrics=metrics(),
        claims=[
            *claims("a null study, not to be reproduced: {}", _METRICS, "draws_a", "draws_b"),
            *claims("draws are alike: {}", _METRICS, "draws_a", "draws_b", alike=True),
        ],
        full_size="`mm1_1b` with other values of `--config.input.seed`.",
    )
