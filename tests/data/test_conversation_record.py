"""The rules of a conversation record: what is kept, repaired with a count, or rejected."""

import pytest

from mm1_jax.data.readers.entries import Documents
from mm1_jax.data.record_files import BadRecord
from mm1_jax.data.records import conversation_record


def user(text):
    return ("user", text)


def bot(text, *loss):
    return ("assistant", text, *loss)


def made(turns, images=(), **options):
    """Returns the turns as pairs, the record, and the counts."""
    entry = conversation_record("x", list(images), turns, **options)
    counts = entry.counts if isinstance(entry, Documents) else {}
    (record,) = entry.records if isinstance(entry, Documents) else (entry,)
    return [(turn["role"], turn["text"]) for turn in record["turns"]], record, counts


@pytest.mark.parametrize(
    "turns",
    [
        [user("<image>\nq"), bot("a")],
        [user("q\n<image>"), bot("a")],
        [user("from <image> to here"), bot("a")],
        [("system", "s"), user("q <image>"), bot("a"), user("q"), bot("a")],
        [user("q"), bot("a"), user("<image> q"), bot("a")],
        [user("q"), bot("a <image>")],
        [user("q"), bot("a")],
    ],
)
def test_images_stay_where_they_are_written(turns):
    assert made(turns, [b"1"])[0] == turns


@pytest.mark.parametrize(
    ("text", "num_images", "reason"),
    [
        ("<image>", 0, "1 times <image> for 0 images"),
        ("<image>\nq", 0, "1 times <image> for 0 images"),
        ("q\n<image>", 0, "1 times <image> for 0 images"),
        ("<image> <image> q", 1, "2 times <image> for 1 images"),
        ("<image> q", 2, "1 times <image> for 2 images"),
    ],
)
def test_tags_and_images_must_agree(text, num_images, reason):
    with pytest.raises(BadRecord, match=reason):
        made([user(text), bot("a")], [b"1"] * num_images)


@pytest.mark.parametrize("text", ["what is <image> in HTML?", "<image> is a tag", "`<image>`"])
def test_a_tag_in_a_chat_without_images_is_text(text):
    turns = [user(text), bot(f"It is {text}")]
    assert made(turns)[0] == turns


def test_loss_flags_are_kept_where_an_answer_has_none():
    _, record, _ = made([user("q"), bot("a", False), user("q"), bot("b", True)], source="vqa")
    assert [turn.get("loss", True) for turn in record["turns"]] == [True, False, True, True]
    assert record["source"] == "vqa"
    with pytest.raises(BadRecord, match="no answer has a loss"):
        made([user("q"), bot("a", False)])
    with pytest.raises(BadRecord, match="loss 'no'; expected true or false"):
        made([user("q"), bot("a", "no")])


@pytest.mark.parametrize(
    ("turns", "kept", "counts"),
    [
        ([user("a"), user("b"), bot("c")], [user("a\nb"), bot("c")], {"merged_turns": 1}),
        ([user("a"), bot("b"), bot("c")], [user("a"), bot("b\nc")], {"merged_turns": 1}),
        ([user("a"), bot(""), bot("c", False)], None, "no answer has a loss"),
        ([user("a"), bot("b"), bot("c", False)], None, "two answers in a row, one with a loss"),
        ([bot("hi"), user("a"), bot("b")], [user("a"), bot("b")], {"leading_answers": 1}),
        ([bot("hi")], None, "an answer without a question"),
        (
            [user("a"), bot(" "), user("b"), bot("c")],
            [user("b"), bot("c")],
            {"blank_answers": 1},
        ),
        ([user("a"), bot(None)], None, "no answer that is not blank"),
        ([user("a")], None, "no answer that is not blank"),
        ([], None, "no answer that is not blank"),
        (
            [user("a"), bot("b"), user("c")],
            [user("a"), bot("b")],
            {"unanswered_questions": 1},
        ),
        ([("system", " "), user("a"), bot("b")], [user("a"), bot("b")], {"blank_system_turns": 1}),
        ([user("a"), ("system", "s"), bot("b")], None, "a system turn that is not the first turn"),
        ([("tool", "x"), user("a"), bot("b")], None, "role 'tool'; expected one of user"),
        ([user(7), bot("b")], None, "text of the user: a int, expected a string"),
    ],
)
def test_turns_alternate_after_counted_repairs(turns, kept, counts):
    if kept is None:
        with pytest.raises(BadRecord, match=counts):
            made(turns)
    else:
        assert made(turns)[::2] == (kept, counts)


def test_images_of_dropped_turns_move_to_the_next_question():
    turns = [user("<image> q"), bot(""), user("<image> r"), bot("a"), user("<image>")]
    kept, record, counts = made(turns, [b"1", b"2", b"3"])
    assert kept == [user("<image>\n<image> r"), bot("a")]
    assert record["images"] == [b"1", b"2"]
    assert counts == {"blank_answers": 1, "unanswered_questions": 1}


BOX = {"image": 0, "box": [0, 0.25, 0.5, 1]}
POINT = {"image": 0, "point": [0.5, 0.5]}


def test_boxes_and_points_stand_for_their_placeholders():
    turns = [user("where is <point>?"), bot("in <box>")]
    kept, record, _ = made(turns, [b"1"], boxes=[POINT, BOX])
    assert kept == turns
    assert record["boxes"] == [POINT, {"image": 0, "box": [0.0, 0.25, 0.5, 1.0]}]
    # Boxes of a dropped question are dropped with it.
    turns = [user("<box>?"), bot(""), user("<point>?"), bot("yes")]
    assert made(turns, [b"1"], boxes=[BOX, POINT])[1]["boxes"] == [POINT]


def test_placeholders_are_text_in_a_record_without_boxes():
    turns = [user("<box> and <point>"), bot("are words")]
    assert "boxes" not in made(turns, [b"1"])[1]


@pytest.mark.parametrize(
    ("text", "box", "reason"),
    [
        ("<box> <box>", BOX, "2 times <box> and 0 times <point> for 1 boxes"),
        ("<point>", BOX, "0 times <box> and 1 times <point> for 1 boxes and 0 points"),
        ("<box>", BOX | {"image": 1}, "a box in image 1 of 1"),
        ("<box>", BOX | {"box": [0, 0, 1.2, 1]}, "expected 4 fractions from 0 to 1"),
        ("<box>", BOX | {"box": [0, 0, float("nan"), 1]}, "expected 4 fractions"),
        ("<box>", BOX | {"box": [0, 0, 1]}, "expected 4 fractions"),
        ("<box>", BOX | {"box": [0.5, 0, 0.4, 1]}, "expected left <= right"),
        ("<point>", POINT | {"point": "xy"}, "expected 2 fractions"),
    ],
)
def test_a_wrong_box_rejects_the_record(text, box, reason):
    with pytest.raises(BadRecord, match=reason):
        made([user("q"), bot(text)], [b"1"], boxes=[box])


def test_the_order_of_boxes_and_points_must_agree():
    with pytest.raises(BadRecord, match="their order differs"):
        made([user("q"), bot("<point> <box>")], [b"1"], boxes=[BOX, POINT])
