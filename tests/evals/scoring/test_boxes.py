"""Boxes and points in answers: the convention of the text does not matter."""

import numpy as np
import pytest

from mm1_jax.data.grounding import Coordinates, iou
from mm1_jax.evals.answers import TextAnswer
from mm1_jax.evals.scoring.boxes import box_accuracy, point_accuracy
from mm1_jax.evals.scoring.items import Item, scores

WRITERS = [
    Coordinates.default_config(),
    Coordinates.default_config().set(full=1, decimals=3),
    Coordinates.default_config().set(full=1000, box="<box>[[{x0}, {y0}, {x1}, {y1}]]</box>"),
]


def scored(function, *pairs: tuple[str, str]):
    return function([Item({}, TextAnswer(answer), reference=truth) for answer, truth in pairs])


@pytest.mark.parametrize("cfg", WRITERS)
def test_accuracy_counts_boxes_that_overlap_by_half(cfg):
    writer, truth = cfg.instantiate(), (0.2, 0.1, 0.6, 0.5)
    rng = np.random.default_rng(0)
    boxes = [truth, *(tuple(np.clip(truth + rng.normal(0, 0.08, 4), 0, 1)) for _ in range(30))]
    result = scored(box_accuracy, *((writer.write(box), writer.write(truth)) for box in boxes))
    expected = [iou(writer.box(writer.write(box)), truth) for box in boxes]
    assert result.columns["mean_iou"] == pytest.approx(expected, abs=0.01)
    assert result.correct == [value >= 0.5 for value in result.columns["mean_iou"]]
    assert 0 < scores(result)["accuracy"] < 1
    assert scores(result)["well_formed"] == 1


@pytest.mark.parametrize(
    "answer", ["", "[1, 2, 3]", "1 2 3 4", "at [1, 2, 3, 4]", "[3, 2, 1, 4]", "[1, 2, 3, 4, 5]"]
)
def test_an_answer_in_another_form_is_wrong(answer):
    assert scores(scored(box_accuracy, (answer, "[1, 2, 3, 4]"))) == {
        "accuracy": 0,
        "mean_iou": 0,
        "well_formed": 0,
    }


def test_spacing_and_a_final_period_do_not_matter():
    assert scores(scored(box_accuracy, ("[1,2,3,4].", "[1, 2, 3, 4]")))["accuracy"] == 1


def test_a_reference_without_a_box_is_an_error():
    with pytest.raises(ValueError, match="expected one box"):
        scored(box_accuracy, ("[1, 2, 3, 4]", "left"))


def test_points_are_right_inside_of_the_box():
    pairs = [("[2, 3]", "[1, 2, 3, 4]"), ("[0, 3]", "[1, 2, 3, 4]"), ("left", "[1, 2, 3, 4]")]
    result = scored(point_accuracy, *pairs)
    assert result.correct == [True, False, False]
    assert scores(result)["well_formed"] == pytest.approx(2 / 3)
