"""Comparisons of programs that round differently: choices are equal except at few near ties.

A mesh, a batch size, a library or an instruction set changes the order of sums, and with it the
last bits. Where two scores are that close, an argmax or a router may choose another token or
expert; everything else must be equal.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from mm1_jax.batch import Batch
from mm1_jax.models.mm1 import MM1

# Largest gap of a near tie, as a share of the scores' standard deviation. Rounding in float32 makes
# up to 1e-5 in all comparisons.
NEAR = 1e-4


def is_near_tie(scores: ArrayLike, one: int, other: int) -> bool:
    """Returns whether two choices have equal scores, up to rounding."""
    scores = np.asarray(scores, np.float64)
    chosen, finite = scores[[one, other]], scores[np.isfinite(scores)]
    return bool(np.isfinite(chosen).all() and np.ptp(chosen) <= NEAR * finite.std())


def assert_same_answers(
    ours: ArrayLike, theirs: ArrayLike, scores: Callable[[int, int], ArrayLike], at_most: int = 1
) -> None:
    """Asserts that greedy answers, one per row, are equal up to a near tie.

    Args:
        scores: Returns the scores of all tokens for a row and the first step at which `ours` and
            `theirs` differ, given the tokens on which both agree.
        at_most: Maximum number of rows with a near tie.
    """
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    differs = ours != theirs
    rows = np.flatnonzero(differs.any(axis=1))
    for row in rows:
        step = int(differs[row].argmax())
        one, other = int(ours[row, step]), int(theirs[row, step])
        values = np.asarray(scores(int(row), step))
        assert is_near_tie(values, one, other), (
            f"row {row}, step {step}: {one} with {values[one]}, {other} with {values[other]}"
        )
    assert len(rows) <= at_most, f"rows {rows.tolist()} have near ties, of {len(ours)}"


def assert_answers_of_transformers(ours: ArrayLike, model: Any, **options: Any) -> None:
    """Asserts that greedy answers are those of `model.generate(**options)`, up to near ties."""
    theirs = model.generate(**options, return_dict_in_generate=True, output_scores=True)
    tokens = theirs.sequences[:, options["input_ids"].shape[1] :].numpy()
    answers = np.asarray(ours)[:, : tokens.shape[1]]
    assert len(np.unique(answers)) > 4
    assert_same_answers(answers, tokens, lambda row, step: theirs.scores[step][row].numpy())


def logits_after(model: MM1, batch: Batch, answers: ArrayLike) -> Callable[[int, int], jax.Array]:
    """Makes `scores` for `assert_same_answers`, from forward passes of single rows, uncached."""
    answers = np.asarray(answers)

    def scores(row: int, step: int) -> jax.Array:
        prompt = batch.tokens[row, batch.segment_ids[row] > 0]
        tokens = np.concatenate([prompt, answers[row, :step]]).astype(np.int32)[None]
        alone = Batch(
            tokens=tokens,
            targets=np.zeros_like(tokens),
            loss_mask=np.zeros(tokens.shape, bool),
            positions=np.arange(tokens.size, dtype=np.int32)[None],
            segment_ids=np.ones_like(tokens),
            corpus_ids=np.zeros_like(tokens),
            images=batch.images,
            image_index=batch.image_index[[row]],
        )
        return model.logits(model(alone, dropless=True).hidden)[0, -1]

    return scores


def assert_same_loads(ours: ArrayLike, theirs: ArrayLike, num_choices: int, at_most: int) -> None:
    """Asserts that experts' shares of the choices are equal except for a few choices per layer.

    Args:
        ours, theirs: One row per layer, which sums to 1.
        num_choices: Tokens times experts per token.
        at_most: Maximum number of choices per layer that differ.
    """
    moved = np.abs(np.asarray(ours) - np.asarray(theirs)).sum(axis=-1) / 2 * num_choices
    assert moved.max() < at_most + 0.5, f"choices that moved, by layer: {moved}"
