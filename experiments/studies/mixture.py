"""Captions against interleaved pages (MM1, figure 5a): zero shots against few.

    python -m mm1_jax run_study --study=mixture

As in the paper, there is no text. Questions about single pictures count as captions.
"""

from experiments.studies._small_world import STEPS, arm, claim, metrics, weights
from mm1_jax.studies.study import Study

# Shares of caption rows and of interleaved rows.
MIXES = ((100, 0), (66, 33), (50, 50), (33, 66), (0, 100))


def study() -> Study:
    return Study(
        design="Captions drive zero-shot scores, interleaved pages few-shot ones, and the curves "
        f"cross: mm1_small_world, for {STEPS} steps of rows of captions and of pages in five "
        "mixes, without text. Metrics are means over the benchmarks of the small world, of which "
        "0.02 is of interest.",
        arms=[
            arm(
                f"mix_{captions}_{pages}",
                f"{captions}% captions",
                overrides=weights(captions, pages, 0),
            )
            for captions, pages in MIXES
        ],
        reference="mix_50_50",
        metrics=metrics(),
        claims=[
            claim(
                "captions alone have the best zero-shot score", "shots_0", "mix_100_0", "mix_0_100"
            ),
            claim("half captions beat none without shots", "shots_0", "mix_50_50", "mix_0_100"),
            claim("half pages beat none at 4 shots", "shots_4", "mix_50_50", "mix_100_0"),
            claim("half pages beat none at 8 shots", "shots_8", "mix_50_50", "mix_100_0"),
            claim(
                "pages alone beat captions alone at 8 shots", "shots_8", "mix_0_100", "mix_100_0"
            ),
            claim("pages help text", "text", "mix_0_100", "mix_100_0"),
        ],
        full_size="`mm1_1b_mix_100_0` to `mm1_1b_mix_0_100` of `experiments/ablations.py`.",
    )
