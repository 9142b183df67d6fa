"""Gains from exemplars (MM1, table 3), with interleaved pages and without.

python -m mm1_jax run_study --study=few_shot
"""

from experiments.studies._small_world import (
    STEPS,
    arm,
    claim,
    claims,
    metrics,
    weights,
)
from mm1_jax.studies.study import Study


def study() -> Study:
    return Study(
        design="Gains from shots need interleaved pages: mm1_small_world, for "
        f"{STEPS} steps of the paper's mixture of captions, pages and text, or with all rows of "
        "pages replaced by captions. Metrics are means over the benchmarks of the small world, of "
        "which 0.02 is of interest.",
        arms=[
            arm("mixture", "45% captions, 45% pages, 10% text", overrides=weights(9, 9, 2)),
            arm("captions", "90% captions, 10% text", overrides=weights(18, 0, 2)),
        ],
        reference="mixture",
        metrics=metrics(),
        claims=[
            claim("8 shots add more with pages", "gain", "mixture", "captions"),
            *claims("pages help: {}", ("shots_4", "shots_8", "names"), "mixture", "captions"),
        ],
        full_size="`mm1_3b`, `mm1_7b` and `mm1_30b`, and the same with "
        "`--config.input.streams.1.weight=0`.",
    )
