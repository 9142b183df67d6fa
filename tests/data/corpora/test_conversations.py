import pytest

from mm1_jax.batch import Image, Text
from mm1_jax.data.corpora.conversations import conversation_document
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
