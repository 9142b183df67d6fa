"""Rows without the mask between their documents (MM1, section 3).

python -m mm1_jax run_study --study=packing_mask
"""

from experiments.studies._small_world import STEPS, arm, claims, metrics
from mm1_jax.studies.study import Study


def study() -> Study:
    return Study(
        design="Without the mask between the documents of a row, few-shot suffers: "
        f"mm1_small_world, for {STEPS} steps, where tokens attend to their own document, or to "
        "all earlier ones of the row too. Metrics are means over the benchmarks of the small "
        "world, of which 0.02 is of interest.",
        arms=[
            arm("masked", "documents apart"),
            arm(
                "unmasked",
                "rows as one document",
                overrides={"model.decoder.document_mask": "False"},
            ),
        ],
        reference="masked",
        metrics=metrics(),
        claims=claims("the mask helps: {}", ("shots_4", "shots_8", "gain"), "masked", "unmasked"),
        full_size="`mm1_1b`, and the same with `--config.model.decoder.document_mask=False`.",
    )
