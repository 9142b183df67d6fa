"""Arms, metrics and claims of the studies on the small world."""

from collections.abc import Mapping, Sequence

from experiments.small_world import score_keys, text_score_keys
from mm1_jax.studies.study import Arm, Claim, Metric, Score

STEPS = 1000
MINUTES = 12.0  # A run with its evaluation, on two quiet cores.
# Difference of a mean score that is of interest; the text score is in percent.
SMALLEST = 0.02


def metrics() -> list[Metric]:
    """Returns the mean over benchmarks by number of shots, what shots add, and the text score."""
    return [
        *(
            Metric(f"shots_{n}", score_keys(n), f"mean over the benchmarks at {n} shots")
            for n in (0, 4, 8)
        ),
        Metric("gain", score_keys(8), "what 8 shots add to it", minus=score_keys(0)),
        Metric("names", ("scenes_names/8/accuracy",), "names that only exemplars tell, at 8 shots"),
        Metric("text", text_score_keys(), "mean of the tasks of text, in percent"),
    ]


def arm(
    name: str, text: str, config: str = "mm1_small_world", overrides: Mapping[str, str] = {}
) -> Arm:
    """Returns an arm that trains for the length of a study."""
    return Arm(name, config, {"trainer.max_steps": str(STEPS), **overrides}, MINUTES, text)


def weights(*shares: int) -> dict[str, str]:
    """Returns the overrides that set the weights of the streams, in their order."""
    return {f"input.streams.{i}.weight": str(share) for i, share in enumerate(shares)}


def claim(text: str, metric: str, higher: str, lower: str, *, alike: bool = False) -> Claim:
    smallest = SMALLEST * (100 if metric == "text" else 1)
    return Claim(text, Score(higher, metric), Score(lower, metric), smallest, alike)


def claims(
    text: str, names: Sequence[str], higher: str, lower: str, *, alike: bool = False
) -> list[Claim]:
    """Returns a claim for each metric; `{}` in the text stands for its name."""
    return [claim(text.format(name), name, higher, lower, alike=alike) for name in names]
