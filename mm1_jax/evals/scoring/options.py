"""Scores of text-only tasks by likelihood or exact match, as in EleutherAI's lm-evaluation-harness.

The chosen option has the largest log-probability (`acc`), log-probability per character of its text
(`acc_norm`) or per byte (`acc_bytes`); the first of equals. All scores are percentages.
"""

import string
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mm1_jax.evals.answers import OptionAnswer
from mm1_jax.evals.scoring.items import Item, Scored, Tally

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def option_accuracies(items: Sequence[Item]) -> Scored:
    """Computes `acc`, `acc_norm` and `acc_bytes`."""
    sizes = {
        "acc": lambda option: 1,
        "acc_norm": len,
        "acc_bytes": lambda option: len(option.encode("utf-8", "replace")),
    }
    return _of_options(items, sizes)


def option_accuracy(items: Sequence[Item]) -> Scored:
    """Computes only `acc`, for options that are compared by the same continuation."""
    return _of_options(items, {"acc": lambda option: 1})


def _of_options(items: Sequence[Item], sizes: Mapping[str, Callable[[str], int]]) -> Scored:
    def correct(size: Callable[[str], int]) -> np.ndarray:
        right = []
        for item in items:
            totals = np.array([one.log_probability for one in item.likelihoods])
            shares = totals / [max(1, size(option)) for option in item.record["options"]]
            right.append(int(np.argmax(shares)) == item.record["label"])
        return 100 * np.array(right, float)

    columns = {name: correct(size) for name, size in sizes.items()}
    quality = np.array([_margin(item) for item in items])
    return Scored([bool(x) for x in columns["acc"]], columns, quality=quality)


def _margin(item: Item) -> float:
    """Returns the log-probability of the right option minus that of the best other, in nats."""
    totals = [one.log_probability for one in item.likelihoods]
    return totals.pop(item.record["label"]) - max(totals, default=0.0)


def last_word(items: Sequence[Item]) -> Scored:
    """LAMBADA: `acc`, the percentage of words that are greedy, and `perplexity` per word."""
    words = [item.likelihoods[0] for item in items]
    correct = [word.is_greedy for word in words]
    log_probabilities = np.array([word.log_probability for word in words])

    def combine(tallies: Mapping[str, Tally]) -> dict[str, np.ndarray]:
        # The perplexity of an untrained model may overflow.
        with np.errstate(over="ignore"):
            perplexity = np.exp(-tallies["perplexity"].mean)
        return {"acc": tallies["acc"].mean, "perplexity": perplexity}

    return Scored(
        correct,
        {"acc": 100 * np.array(correct, float), "perplexity": log_probabilities},
        combine,
        chosen=[_greedy(item) for item in items],
        quality=np.array([_margin(item) for item in items]),
    )


def one_greedy(items: Sequence[Item]) -> Scored:
    """WebQuestions: right if one of the accepted answers is greedy.

    The quality is the log-probability of the most likely answer.
    """
    correct = [any(one.is_greedy for one in item.likelihoods) for item in items]
    best = [max(one.log_probability for one in item.likelihoods) for item in items]
    return Scored(
        correct,
        {"exact_match": 100 * np.array(correct, float)},
        chosen=[_greedy(item) for item in items],
        quality=np.array(best, float),
    )


def _greedy(item: Item) -> str:
    """Returns the greedy option; "" without one, as the model's own answer is not known."""
    assert isinstance(item.answer, OptionAnswer)
    pairs = zip(item.record["options"], item.likelihoods, strict=True)
    return next((option for option, one in pairs if one.is_greedy), "")


def one_of_aliases(items: Sequence[Item]) -> Scored:
    """TriviaQA: right if equal to an alias up to case, punctuation and leading whitespace."""
    correct = [_plain(item.text) in map(_plain, item.record["answers"]) for item in items]
    return Scored(correct, {"exact_match": 100 * np.array(correct, float)})


def _plain(text: str) -> str:
    return text.lstrip().lower().translate(_NO_PUNCTUATION)
