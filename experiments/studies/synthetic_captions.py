"""A share of synthetic captions (MM1, figure 5d).

    python -m mm1_jax run_study --study=synthetic_captions

Synthetic captions of the small world say all that a picture shows, as those of VeCap do. The others
say part of it, and a tenth of them belongs to another picture.
"""

from collections.abc import Callable

from experiments.small_world import mm1_small_world
from experiments.studies._small_world import STEPS, arm, claims, metrics
from mm1_jax.data.corpora import world_records
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.data.mixture import CorpusWeight
from mm1_jax.experiment import Experiment
from mm1_jax.studies.study import Arm, Study

# Percent of the captions; the paper has 7.
SHARES = (0, 7, 30)


def study() -> Study:
    def with_share(percent: int) -> Arm:
        path = "input.streams.0.corpora.{}.weight"
        # Captions are two fifths of their stream, beside questions.
        shares = {path.format(0): str(100 - percent), path.format(2): str(percent)}
        return arm(f"synthetic_{percent}", f"{percent}% synthetic", "two_captions", shares)

    return Study(
        design="A few percent of synthetic captions help few-shot: mm1_small_world, for "
        f"{STEPS} steps, with 0, 7 and 30% of its captions synthetic. Metrics are means over the "
        "benchmarks of the small world, of which 0.02 is of interest.",
        arms=[with_share(percent) for percent in SHARES],
        reference="synthetic_0",
        metrics=metrics(),
        claims=[
            *claims("7% help: {}", ("shots_4", "shots_8"), "synthetic_7", "synthetic_0"),
            *claims("30% help more: {}", ("shots_8",), "synthetic_30", "synthetic_7"),
        ],
        full_size="`mm1_1b` and `mm1_1b_synthetic_captions` of `experiments/ablations.py`.",
    )


def two_captions() -> Experiment.Config:
    """`mm1_small_world` with captions in two corpora, of short and of synthetic ones."""
    cfg = mm1_small_world()
    captions, questions = cfg.input.streams[0].corpora
    synthetic = world_records.corpus(Kind.CAPTIONS, synthetic_share=1.0)
    synthetic.name = "world_synthetic"
    captions.corpus.source.synthetic_share = 0.0
    captions.weight, questions.weight = 100, 150
    cfg.input.streams[0].corpora.append(CorpusWeight().set(corpus=synthetic, weight=0))
    return cfg


def named_configs() -> dict[str, Callable[[], Experiment.Config]]:
    return {"two_captions": two_captions}
