from typing import Any

import pytest

from mm1_jax.batch import Image, Markup, Stop, Text
from mm1_jax.config import Configurable
from mm1_jax.data.chat_formats.mm1 import MM1ChatFormat
from mm1_jax.data.corpora.conversations import ConversationDocument, conversation_document
from mm1_jax.data.record_files import BadRecord


def document(*turns, images=(b"1",)):
    turns = [{"role": role, "text": text} for role, text in turns]
    return conversation_document({"images": list(images), "turns": turns})


def test_only_answers_are_scored():
    made = document(("user", "<image>\nWhat is it?"), ("assistant", "A cat."))
    assert made.segments == (
        Text("USER:", scored=False),
        Image(b"1"),
        Text("What is it?", scored=False),
        Text("ASSISTANT:", scored=False),
        Text("A cat."),
    )


def test_images_go_to_their_markers_and_unmarked_images_come_first():
    made = document(
        ("system", "Be brief."),
        ("user", "First <image> then <image>"),
        ("assistant", "Yes."),
        images=(b"0", b"1", b"2"),
    )
    assert made.images == (Image(b"0"), Image(b"1"), Image(b"2"))
    assert made.segments[0] == Image(b"0")
    assert made.segments[1:6] == (
        Text("Be brief.", scored=False),
        Text("USER: First", scored=False),
        Image(b"1"),
        Text("then", scored=False),
        Image(b"2"),
    )


def test_flags_and_boxes_of_newer_records_are_not_ignored():
    turns = [{"role": "user", "text": "a"}, {"role": "assistant", "text": "b", "loss": False}]
    again = [{"role": "user", "text": "c"}, {"role": "assistant", "text": "d", "loss": True}]
    made = conversation_document({"images": [], "turns": turns + again})
    assert [s.text for s in made.segments if s.scored] == ["d"]
    with pytest.raises(BadRecord, match="no answer"):
        conversation_document({"images": [], "turns": turns})
    boxes = [{"image": 0, "box": [0, 0, 1, 1]}]
    with pytest.raises(BadRecord, match="set to_document to a ConversationDocument"):
        conversation_document({"images": [b"1"], "turns": again, "boxes": boxes})


def test_a_text_conversation_keeps_all_turns():
    made = document(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), images=())
    assert [s.text for s in made.segments if s.scored] == ["b", "d"]
    assert [s.text for s in made.segments if not s.scored] == [
        "USER: a", "ASSISTANT:", "USER: c", "ASSISTANT:",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([("user", "<image> <image>"), ("assistant", "x")], "2 times <image> for 1 images"),
        ([("robot", "x")], "role 'robot'"),
        ([("user", "x"), ("assistant", "  ")], "no answer"),
        ([], "no answer"),
    ],
)
def test_a_conversation_without_scored_text_is_bad(turns, reason):
    with pytest.raises(BadRecord, match=reason):
        document(*turns)


def test_a_missing_text_counts_as_blank():
    made = document(("user", "a"), ("assistant", None), ("user", None), ("assistant", "d"))
    assert [s.text for s in made.segments if isinstance(s, Text) and s.scored] == ["d"]


def chat(*turns, images=(b"1",), boxes=None, **fields):
    """Returns the document of (role, text) or (role, text, loss) turns in the chat format."""
    record: dict[str, Any] = {
        "images": list(images),
        "turns": [dict(zip(("role", "text", "loss"), turn, strict=False)) for turn in turns],
    }
    if boxes is not None:
        record["boxes"] = boxes
    cfg = ConversationDocument.default_config().set(chat_format=MM1ChatFormat.default_config())
    return cfg.set(**fields).instantiate()(record)


def test_each_answer_has_a_scored_stop_unless_it_is_only_read():
    made = chat(("user", "a"), ("assistant", "b", False), ("user", "c"), ("assistant", "d"))
    assert made.segments == (
        Markup("User:"),
        Image(b"1"),
        Text("a", scored=False),
        Markup(" Assistant:"),
        Text(" b", scored=False),
        Stop(scored=False),
        Markup("User:"),
        Text(" c", scored=False),
        Markup(" Assistant:"),
        Text(" d"),
        Stop(),
    )
    assert not made.ends


def test_images_stay_where_they_are_written_or_move_to_the_front_of_their_turn():
    turns = [("user", "is <image> like\n<image>?"), ("assistant", "no"), ("user", "b <image>")]
    turns.append(("assistant", "yes"))
    images = (b"0", b"1", b"2")
    written = chat(*turns, images=images)
    parts = [
        s.text if isinstance(s, Text) else s.data
        for s in written.segments
        if isinstance(s, Text | Image)
    ]
    assert parts == [" is", b"0", "like", b"1", "?", " no", " b", b"2", " yes"]
    front = chat(*turns, images=images, image_place="front")
    parts = [
        s.text if isinstance(s, Text) else s.data
        for s in front.segments
        if isinstance(s, Text | Image)
    ]
    assert parts == [b"0", b"1", "is  like\n?", " no", b"2", "b", " yes"]


def test_images_without_a_place_precede_the_first_question():
    made = chat(("system", "s"), ("user", "a"), ("assistant", "b"), images=(b"0", b"1"))
    places = [i for i, s in enumerate(made.segments) if isinstance(s, Image)]
    assert [made.segments[i - 1] for i in places[:1]] == [Markup(" User:")]
    assert made.images == (Image(b"0"), Image(b"1"))


def test_a_name_of_an_image_in_a_text_chat_is_text():
    made = chat(("user", "what is <image> in HTML?"), ("assistant", "<image> is no tag"), images=())
    assert [s.text for s in made.segments if isinstance(s, Text)] == [
        " what is <image> in HTML?",
        " <image> is no tag",
    ]


class Percent(Configurable):
    """Writes a point as two percentages."""

    def write_entry(self, entry):
        x, y = entry["point"]
        return f"({100 * x:.0f}, {100 * y:.0f})"


def test_boxes_and_points_are_written_where_they_stand():
    turns = [("user", "what is at <point>?"), ("assistant", "a cat, and <point> a dog")]
    points = [{"image": 0, "point": [0.5, 0.25]}, {"image": 0, "point": [0.0, 1.0]}]
    made = chat(*turns, boxes=points, coordinates=Percent.default_config())
    assert [s.text for s in made.segments if isinstance(s, Text)] == [
        "what is at (50, 25)?",
        " a cat, and (0, 100) a dog",
    ]
    # Without boxes, the names are text.
    plain = chat(("user", "a <box>?"), ("assistant", "b"), images=())
    assert Text(" a <box>?", scored=False) in plain.segments
    with pytest.raises(BadRecord, match="coordinates is None"):
        chat(*turns, boxes=points)
    with pytest.raises(BadRecord, match="2 times <box> or <point> for 1"):
        chat(*turns, boxes=points[:1], coordinates=Percent.default_config())


@pytest.mark.parametrize(
    "turns, reason",
    [
        ([("user", "a"), ("assistant", " ")], "no scored answer"),
        ([("user", "a"), ("assistant", "b", False)], "no scored answer"),
        ([("dog", "a"), ("assistant", "b")], "role 'dog'"),
        ([("user", "<image><image>"), ("assistant", "b")], "2 times <image> for 1 images"),
    ],
)
def test_a_conversation_that_teaches_nothing_is_bad(turns, reason):
    with pytest.raises(BadRecord, match=reason):
        chat(*turns)


def test_a_blank_answer_among_others_is_not_scored():
    made = chat(("user", "a"), ("assistant", ""), ("user", "c"), ("assistant", "d"))
    assert [s.scored for s in made.segments if isinstance(s, Stop)] == [False, True]


def test_a_missing_chat_format_is_named():
    with pytest.raises(ValueError, match="set input.chat_format"):
        ConversationDocument.default_config().instantiate()
