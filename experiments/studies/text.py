"""Text among captions and pages (MM1, figures 5b and 5c).

python -m mm1_jax run_study --study=text
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
        design="About a tenth of text keeps text at little cost: mm1_small_world, for "
        f"{STEPS} steps of captions, of pages, or of equal shares of both, with a share of rows of "
        "text. Shares are those of the paper. Metrics are means over the benchmarks of the small "
        "world and of its texts, of which 0.02 is of interest.",
        arms=[
            arm("captions", "captions alone", overrides=weights(1, 0, 0)),
            arm("captions_text", "captions, 9% text", overrides=weights(10, 0, 1)),
            arm("pages", "pages alone", overrides=weights(0, 1, 0)),
            arm("pages_text", "pages, 9% text", overrides=weights(0, 10, 1)),
            arm("both", "captions and pages", overrides=weights(1, 1, 0)),
            arm("both_text_9", "both, 9% text", overrides=weights(5, 5, 1)),
            arm("both_text_14", "both, 14% text", overrides=weights(3, 3, 1)),
            arm("both_text_33", "both, 33% text", overrides=weights(1, 1, 1)),
        ],
        reference="both",
        metrics=metrics(),
        claims=[
            claim("a tenth of text helps text", "text", "both_text_9", "both"),
            *claims(
                "a tenth of text costs little: {}",
                ("shots_0", "shots_8"),
                "both_text_9",
                "both",
                alike=True,
            ),
            claim("text helps captions at 8 shots", "shots_8", "captions_text", "captions"),
            claim(
                "text costs pages little at 8 shots", "shots_8", "pages_text", "pages", alike=True
            ),
            claim(
                "a third of text costs more at 0 shots", "shots_0", "both_text_9", "both_text_33"
            ),
        ],
        full_size="`mm1_1b`, whose mixture has 10% text, and the same with "
        "`--config.input.streams.2.weight` of 0, 3 and 9.",
    )
