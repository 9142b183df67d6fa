import re

import numpy as np
import pytest

from mm1_jax.data.corpora.clutter import CLASSES, Subject, corpus
from mm1_jax.data.corpora.embedded import NUMBERS
from mm1_jax.data.corpora.scenes import COLORS
from mm1_jax.data.images import resize


def source(subject, split="train", num_records=400, **fields):
    made = corpus(subject, num_records=num_records, **fields)
    return made.instantiate(split=split).source


@pytest.mark.parametrize("subject", Subject)
def test_records_are_functions_of_split_and_index_and_name_their_class(subject):
    first, second = source(subject), source(subject)
    assert len(source(subject, "test")) == 100
    for i in (3, 399, 0, 3):
        a, b = first[i], second[i]
        assert a["captions"] == b["captions"]
        np.testing.assert_array_equal(a["image"](), b["image"]())
    assert first[0]["image"]().shape == (64, 64, 3)
    records = [first[i] for i in range(400)]
    assert {record["class"] for record in records} == set(CLASSES[subject])
    for record in records:
        kinds = {caption["kind"]: caption["text"] for caption in record["captions"]}
        assert list(kinds) == ["alt", "synthetic"]
        name = record["class"]
        words = {name, str(NUMBERS.index(name))} if name in NUMBERS else {name}
        for text in kinds.values():
            assert any(re.search(rf"\b{word}\b", text) for word in words), (text, name)
    assert len({record["captions"][1]["text"] for record in records}) > 150
    with pytest.raises(IndexError):
        first[400]


def test_the_subject_of_shapes_has_the_color_of_its_class_and_stands_where_captions_say():
    shapes = source(Subject.SHAPES)
    for i in range(60):
        record = shapes[i]
        pixels = record["image"]().astype(int)
        color = np.array(COLORS[record["class"].split()[0]])
        is_own = np.abs(pixels - color).max(axis=-1) < 40
        # Companions have other colors, so these are the subject's pixels.
        y, x = (place.mean() for place in np.nonzero(is_own))
        text = record["captions"][1]["text"]
        if y < 16:
            assert "at the top" in text
        if x > 48:
            assert "right" in text


def test_held_out_shapes_have_companions_that_training_never_combines_with_them():
    def combinations(split):
        made = source(Subject.SHAPES, split, num_records=2000)
        texts = [made[i]["captions"][1]["text"] for i in range(len(made))]
        return {re.sub(r"^a \w+ (\w+ \w+) .* with a small (.*)", r"\1/\2", text) for text in texts}

    train, test = combinations("train"), combinations("test")
    assert len(train) > 150 and len(test) > 30
    assert not train & test


@pytest.mark.parametrize("subject", Subject)
def test_a_linear_probe_of_the_pixels_is_right_for_less_than_half_of_the_pictures(subject):
    # With 8,192 pictures of 32 x 32 pixels: 0.18 for digits, 0.29 for shapes.
    def pixels_and_targets(split):
        made = source(subject, split, num_records=1600)
        records = [made[i] for i in range(len(made))]
        pixels = np.stack([resize(each["image"](), 16).ravel() for each in records]) / 255.0
        return pixels, np.array([CLASSES[subject].index(each["class"]) for each in records])

    (x, labels), (x_test, labels_test) = pixels_and_targets("train"), pixels_and_targets("test")
    mean = x.mean(axis=0)
    x, x_test = x - mean, x_test - mean
    targets = np.eye(len(CLASSES[subject]))[labels]
    for penalty in (10, 100, 1000):
        weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ targets)
        accuracy = np.mean((x_test @ weights).argmax(axis=1) == labels_test)
        assert accuracy < 0.5
