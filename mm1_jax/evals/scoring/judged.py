"""Aggregates of a judge's grades: LLaVA-Bench (in the wild) and MM-Vet.

The judge is a language model, GPT-4 in all published figures; what it said comes from a file.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mm1_jax.evals.scoring.items import Item, Scored
from mm1_jax.evals.scoring.texts import mean

# Grades that the official script writes for a review without any.
UNREADABLE_REVIEW = (-1.0, -1.0)


def ungraded(items: Sequence[Item]) -> Scored:
    """No verdicts: an answer is right to a degree, and only the judge says to which."""
    return Scored([None] * len(items), {})


def review_grades(review: str) -> tuple[float, float]:
    """The two grades, of reference and model, that the first line of a review begins with.

    Raises:
        ValueError: If that line is not two numbers.
    """
    words = review.strip().split("\n")[0].replace(",", " ").split()
    if len(words) != 2:
        raise ValueError(f"expected a first line of two grades, such as '8 7', not {words}")
    return float(words[0]), float(words[1])


def llava_bench_scores(
    grades: Mapping[str, Sequence[tuple[float, float]]],
) -> dict[str, dict[str, float]]:
    """By category and over all, of grades of 1 to 10 of the reference and of the model.

    `relative` is 100 times the model's mean grade to the reference's (`gpt4`); both means are given
    times 10. Rounded as the official summary is: means to three decimals, then all to one.
    """
    everything = [pair for pairs in grades.values() for pair in pairs]
    scores = {}
    for category, pairs in {**grades, "all": everything}.items():
        reference, model = (round(mean(column), 3) for column in zip(*pairs, strict=True))
        scores[category] = {
            "relative": round(100 * model / reference, 1),
            "gpt4": round(10 * reference, 1),
            "model": round(10 * model, 1),
        }
    return scores


def mmvet_scores(
    grades: Sequence[Sequence[float]], capabilities: Sequence[Sequence[str]] | None = None
) -> dict[str, object]:
    """MM-Vet from grades of 0 to 1 by question and run of the judge, as percentages.

    `runs` has a mean for each run, `total` their mean, `std` their standard deviation. With the
    capabilities that each question needs, `capabilities` has the mean of those that need each.
    """
    by_run = 100 * np.asarray(grades, float)
    runs = np.array([mean(column) for column in by_run.T.tolist()])
    scores: dict[str, object] = {
        "n": len(by_run),
        "runs": runs.tolist(),
        "total": mean(runs.tolist()),
        "std": float(runs.std()),
    }
    if capabilities is not None:
        names = sorted({name for needed in capabilities for name in needed})
        needing = {name: [name in needed for needed in capabilities] for name in names}
        scores["capabilities"] = {
            name: mean(by_run[np.array(rows)].ravel().tolist()) for name, rows in needing.items()
        }
    return scores
