"""Zero-shot classification and retrieval of features, by the rules of LAION's CLIP_benchmark.

All features are unit vectors. Similarities are dot products in float64 that are rounded to float32,
so that they depend neither on the number of rows computed at once nor on the BLAS, and equal texts
have equal similarities. Between equal similarities the first candidate wins. PyTorch's `topk`,
which CLIP_benchmark uses, leaves their order open.

n queries   m candidates   E features
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Float32, Int

# Similarities held at once.
_CHUNK = 2**22


def unit_vectors(vectors: Float[np.ndarray, "... E"]) -> Float32[np.ndarray, "... E"]:
    vectors = vectors.astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def class_vectors(sentences: Float[np.ndarray, "m templates E"]) -> Float32[np.ndarray, "m E"]:
    """Returns the vector of each class: the normalized mean of its normalized sentences."""
    return unit_vectors(unit_vectors(sentences).mean(axis=1))


def classify(
    images: Float[np.ndarray, "n E"],
    classes: Float[np.ndarray, "m E"],
    labels: Int[np.ndarray, "n"],
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Returns the rank of each image's label among the classes, from 0, and the class predicted."""
    ranks, predicted = [], []
    for rows, scores in _similarities(images, classes):
        ranks.append(ranks_of(scores, labels[rows]))
        predicted.append(scores.argmax(axis=1))
    return np.concatenate(ranks), np.concatenate(predicted)


def ranks_of(scores: Float[np.ndarray, "n m"], right: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """Returns the number of candidates before the right one of each query."""
    best = np.take_along_axis(scores, right[:, None], 1)
    is_before = np.arange(scores.shape[1])[None] < right[:, None]
    return np.count_nonzero((scores > best) | ((scores == best) & is_before), axis=1)


def mean_per_class_recall(labels: Int[np.ndarray, "n"], predicted: Int[np.ndarray, "n"]) -> float:
    """Returns the mean accuracy over the classes that have an image."""
    totals = np.bincount(labels)
    hits = np.bincount(labels[labels == predicted], minlength=len(totals))
    return float(np.mean(hits[totals > 0] / totals[totals > 0]))


def retrieve(
    images: Float[np.ndarray, "n E"],
    texts: Float[np.ndarray, "m E"],
    image_of_text: Int[np.ndarray, "m"],
) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "n"]]:
    """Returns the ranks of the right results, from 0, of each query.

    Args:
        image_of_text: The image of each text; every image has at least one text, and the texts of
            an image are adjacent, in the order of the images.

    Returns:
        The rank of the image of each text among all images, and the rank of the first text of each
        image among all texts.
    """
    image_ranks = [
        ranks_of(scores, image_of_text[rows]) for rows, scores in _similarities(texts, images)
    ]
    starts = np.searchsorted(image_of_text, np.arange(len(images) + 1))
    text_ranks = []
    for rows, scores in _similarities(images, texts):
        first = [
            starts[image] + scores[row, starts[image] : starts[image + 1]].argmax()
            for row, image in enumerate(range(rows.start, rows.stop))
        ]
        text_ranks.append(ranks_of(scores, np.array(first)))
    return np.concatenate(image_ranks), np.concatenate(text_ranks)


def _similarities(
    queries: Float[np.ndarray, "n E"], candidates: Float[np.ndarray, "m E"]
) -> Iterator[tuple[slice, Float32[np.ndarray, "rows m"]]]:
    columns = candidates.astype(np.float64).T
    size = max(1, _CHUNK // len(candidates))
    for start in range(0, len(queries), size):
        rows = slice(start, min(start + size, len(queries)))
        yield rows, (queries[rows].astype(np.float64) @ columns).astype(np.float32)
