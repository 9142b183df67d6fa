"""Scores aggregated from a judge's grades: LLaVA-Bench (in the wild) and MM-Vet.

The judge is a language model, GPT-4 in all published figures.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mm1_jax.evals.scoring.items import Item, Scored
from mm1_jax.evals.scoring.texts import mean

# Grades that the official script writes for a review without grades.
UNREADABLE_REVIEW = (-1.0, -1.0)


def ungraded(items: Sequence[Item]) -> Scored:
    """Returns no verdicts: an answer is right to a degree, which only the judge decides."""
    return Scored([None] * len(items), {})


def review_grades(review: str) -> tuple[float, float]:
    """Returns the grades of reference and model, which are the first line of a review.

    Raises:
        ValueError: The first line does not consist of two numbers.
    """
    words = review.strip().split("\n")[0].replace(",", " ").split()
    if len(words) != 2:
        raise ValueError(f"expected a first line of two grades, such as '8 7', not {words}")
    return float(words[0]), float(words[1])


def llava_bench_scores(
    grades: Mapping[str, Sequence[tuple[float, float]]],
) -> dict[str, dict[str, float]]:
    """Returns scores per category and over all, from grades (1 to 10) of reference and model.

    `relative` is 100 times the ratio of the model's mean grade to the reference's. `gpt4` and
    `model` are 10 times the mean grades of reference and model. As in the official summary, means
    are rounded to three decimals, then all scores to one.
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
    """Returns the scores of MM-Vet in percent, from grades (0 to 1) per question and judge run.

    `runs` is the mean of each run, `total` their mean and `std` their standard deviation. Given the
    capabilities that each question needs, `capabilities` has the mean over the questions that need
    each capability.
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
