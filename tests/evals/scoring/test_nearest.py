"""Scores of zero-shot classification and retrieval equal those of CLIP_benchmark itself."""

import json
from pathlib import Path

import numpy as np
import pytest

from mm1_jax.evals.scoring import nearest
from mm1_jax.evals.scoring.nearest import (
    class_vectors,
    classify,
    mean_per_class_recall,
    retrieve,
    unit_vectors,
)

REFERENCE = json.loads(Path(__file__).with_name("clip_benchmark.json").read_text())


def array(values) -> np.ndarray:
    return np.array(values, np.float32)


def classified(case):
    sentences = array(case["texts"]).reshape(case["classes"], case["templates"], -1)
    images, labels = unit_vectors(array(case["images"])), np.array(case["labels"])
    return images, class_vectors(sentences), labels


def retrieved(case):
    images, texts = (unit_vectors(array(case[name])) for name in ("images", "texts"))
    return images, texts, np.repeat(np.arange(len(images)), case["counts"])


@pytest.mark.parametrize("case", REFERENCE["classification"][:-1], ids=["12 classes", "4 classes"])
def test_classification_has_the_official_scores(case):
    images, classes, labels = classified(case)
    ranks, predicted = classify(images, classes, labels)
    expected = case["expected"]
    assert np.mean(ranks < 1) == expected["acc1"]
    assert expected["acc5"] is None or np.mean(ranks < 5) == expected["acc5"]
    assert mean_per_class_recall(labels, predicted) == expected["mean_per_class_recall"]
    # The last class has no picture and does not count.
    assert case["classes"] - 1 not in labels


def test_retrieval_has_the_official_scores():
    case = REFERENCE["retrieval"][0]
    image_ranks, text_ranks = retrieve(*retrieved(case))
    for k in (1, 5, 10):
        for side, ranks in (("image", image_ranks), ("text", text_ranks)):
            # The official means are float32.
            expected = case["expected"][f"{side}_retrieval_recall@{k}"]
            assert np.float32(np.mean(ranks < k)) == np.float32(expected), (side, k)


def test_ties_go_to_the_first_candidate_and_official_scores_lie_between_both_extremes():
    case = REFERENCE["classification"][-1]
    images, classes, labels = classified(case)
    ranks, predicted = classify(images, classes, labels)
    scores = (images.astype(np.float64) @ classes.astype(np.float64).T).astype(np.float32)
    right = scores[np.arange(len(labels)), labels][:, None]
    for k in (1, 5):
        least = np.mean(np.sum(scores >= right, axis=1) - 1 < k)
        most = np.mean(np.sum(scores > right, axis=1) < k)
        assert least < most
        assert least <= case["expected"][f"acc{k}"] <= most
        assert least <= np.mean(ranks < k) <= most
    # `argmax` has an order in PyTorch as well.
    assert mean_per_class_recall(labels, predicted) == case["expected"]["mean_per_class_recall"]

    case = REFERENCE["retrieval"][-1]
    images, texts, owners = retrieved(case)
    image_ranks, text_ranks = retrieve(images, texts, owners)
    scores = (texts.astype(np.float64) @ images.astype(np.float64).T).astype(np.float32)
    best = np.array([scores[owners == image, image].max() for image in range(len(images))])
    for side, ranks, better, equal in (
        (
            "image",
            image_ranks,
            np.sum(scores > scores[np.arange(len(owners)), owners][:, None], axis=1),
            np.sum(scores == scores[np.arange(len(owners)), owners][:, None], axis=1),
        ),
        ("text", text_ranks, np.sum(scores > best, axis=0), np.sum(scores == best, axis=0)),
    ):
        for k in (1, 5, 10):
            expected = case["expected"][f"{side}_retrieval_recall@{k}"]
            least, most = np.mean(better + equal - 1 < k), np.mean(better < k)
            assert least - 1e-6 <= expected <= most + 1e-6
            assert least <= np.mean(ranks < k) <= most


def test_equal_captions_have_equal_ranks_in_chunks_of_any_size(monkeypatch):
    rng = np.random.default_rng(0)
    images = unit_vectors(rng.normal(size=(9, 33)).astype(np.float32))
    texts = np.repeat(unit_vectors(rng.normal(size=(9, 33)).astype(np.float32)), 2, axis=0)
    owners = np.arange(18) // 2
    whole = retrieve(images, texts, owners)
    assert np.array_equal(whole[0][::2], whole[0][1::2])
    # The first of two equal captions is found, so ranks count whole pairs before it.
    assert not np.any(whole[1] % 2)
    monkeypatch.setattr(nearest, "_CHUNK", 40)
    for one, other in zip(whole, retrieve(images, texts, owners), strict=True):
        assert np.array_equal(one, other)
