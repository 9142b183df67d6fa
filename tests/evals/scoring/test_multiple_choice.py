import pytest

from mm1_jax.evals.answers import TextAnswer
from mm1_jax.evals.scoring.items import Item, scores
from mm1_jax.evals.scoring.multiple_choice import mmbench, option_letter, scienceqa_letter, seed

OPTIONS = {"A": "a green one", "B": "red"}


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("B. a bird", "B"),
        ("The answer is B.", "B"),
        ("The answer is A. The answer is B.", None),
        ("E", None),
        ("b", None),
        ("B a bird", None),
        ("", None),
    ],
)
def test_scienceqa_accepts_three_forms_of_a_reply(reply, letter):
    assert scienceqa_letter(reply, 3) == letter


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("A", "A"),
        (" (B) red", "B"),
        ("B: red", "B"),
        ("Because of its colour, (B)", "B"),
        ("Red.", "B"),
        ("A or B", "A"),
        ("Apples", None),
        ("C", None),
        ("(A) or (B)?", "A"),
        ("either (A) or (B)", None),
    ],
)
def test_an_option_is_chosen_by_letter_or_text(reply, letter):
    assert option_letter(reply, {"A": "a green one", "B": "red"}) == letter


def item(is_right: bool, key: str = "", **record: object) -> Item:
    return Item({"options": OPTIONS, "answer": "B", **record}, TextAnswer("AB"[is_right]), key)


def test_mmbench_requires_all_rounds_of_a_question():
    rows = {7: True, 1000007: True, 2000007: False, 8: True, 1000008: True, 9: False}
    scored = mmbench([item(right, str(index)) for index, right in rows.items()])
    assert scores(scored) == {
        "circular_acc": pytest.approx(100 / 3),
        "vanilla_acc": pytest.approx(200 / 3),
    }
    assert len({*scored.units}) == 3


def test_seed_distinguishes_images_from_videos():
    rows = ((True, 1), (False, 9), (False, 10))
    found = scores(seed([item(right, kind=kind) for right, kind in rows]))
    assert found["acc"] == pytest.approx(100 / 3)
    assert (found["image_acc"], found["video_acc"], found["type_9_acc"]) == (50, 0, 0)
    assert "video_acc" not in scores(seed([item(True, kind=2)]))
