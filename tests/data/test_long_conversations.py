"""Conversations that are longer than a row: refused, cut or split between rounds."""

import random
from collections import Counter

import numpy as np
import pytest

from mm1_jax.batch import Image, Text
from mm1_jax.data.chat_formats.llava import LLaVAChatFormat
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.conversations import ConversationDocument, conversation_document
from mm1_jax.data.examples import ExampleBuilder
from mm1_jax.data.lengths import Lengths, compute_lengths
from mm1_jax.data.record_files import Manifest, RecordKind, ShardWriter
from mm1_jax.data.sources.array_record import ArrayRecordSource
from mm1_jax.data.splitting import ConversationSplitter, Splitter, TooLong

ROW, MAX_IMAGES = 128, 4
NUM_RECORDS = 40


def record(number: int) -> dict:
    """Returns up to 8 rounds about up to 3 pictures, one of them in a later round at times.

    Every text is unique, so that pieces can be compared with the whole.
    """
    rng = random.Random(number)
    num_images = rng.randint(0, 3)
    marks = ["" for _ in range(rng.randint(1, 8))]
    for _ in range(num_images):
        place = 0 if rng.random() < 0.8 else rng.randrange(len(marks))
        marks[place] += "<image>"
    turns = [{"role": "system", "text": f"system {number}"}] * (rng.random() < 0.4)
    for i, mark in enumerate(marks):
        words = " ".join(rng.choices(["red", "circle", "two"], k=rng.randint(1, 20)))
        turns.append({"role": "user", "text": f"{mark} question {number}/{i} {words}"})
        answer = {"role": "assistant", "text": f"answer {number}/{i} {words}"}
        turns.append(answer | ({"loss": False} if rng.random() < 0.2 else {}))
    if not any(turn.get("loss", True) for turn in turns if turn["role"] == "assistant"):
        turns[-1].pop("loss", None)
    return {"id": str(number), "images": [b"%d" % i for i in range(num_images)], "turns": turns}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversations")
    with ShardWriter(folder, "records-00000-00.array_record") as writer:
        for number in range(NUM_RECORDS):
            writer.write(record(number))
    Manifest(RecordKind.CONVERSATIONS, (writer.shard,)).write(folder)
    return folder


@pytest.fixture
def builder(tokenizer) -> ExampleBuilder:
    return ExampleBuilder(
        tokenizer, num_image_tokens=4, max_sequence_length=ROW, max_images=MAX_IMAGES
    )


def corpus(folder, splitter, to_document=None) -> Corpus:
    chat_format = LLaVAChatFormat.default_config().set(system="")
    cfg = Corpus.default_config().set(
        name="chats",
        source=ArrayRecordSource.default_config().set(path=str(folder)),
        to_document=to_document
        or ConversationDocument.default_config().set(chat_format=chat_format),
        splitter=splitter,
    )
    return cfg.instantiate(split="train")


def splitter(too_long: str = "split", **fields):
    return ConversationSplitter.default_config().set(too_long=too_long, **fields)


def scored(document) -> list[str]:
    return [s.text for s in document.segments if isinstance(s, Text) and s.scored]


def pieces_of(corpus: Corpus, lengths: Lengths) -> dict[int, list]:
    found: dict[int, list] = {}
    for i in range(len(lengths)):
        if lengths.table[i, 0]:
            piece = lengths.piece(i)
            found.setdefault(piece.record, []).append((piece, corpus.piece(piece)))
    return found


def test_pieces_fit_have_a_scored_answer_and_see_their_head(folder, builder):
    made = corpus(folder, splitter())
    lengths = compute_lengths(made, builder)
    num_split = 0
    for number, pieces in pieces_of(made, lengths).items():
        whole = made.document(number)
        num_split += len(pieces) > 1
        for piece, document in pieces:
            example = builder.example(document)
            assert example.loss_mask.any()
            if piece.end is None:
                continue
            turns = document.turns
            assert turns[-1].role == "assistant"
            assert [t for t in turns if t.role == "system"] == [
                t for t in whole.turns if t.role == "system"
            ]
            # Every picture before the end of the piece is in it, in order.
            last = whole.turns.index(turns[-1])
            before = [p for t in whole.turns[: last + 1] for p in t.parts if isinstance(p, Image)]
            assert list(document.images) == before
        answers = [text for _, document in pieces for text in scored(document)]
        assert len(set(answers)) == len(answers)
        assert set(answers) <= set(scored(whole))
    assert num_split > 5
    for i in range(len(lengths)):
        if lengths.table[i, 0]:
            example = builder.example(made.piece(lengths.piece(i)))
            assert (len(example.tokens), len(example.images)) == tuple(lengths.table[i])


def test_a_conversation_that_is_split_loses_only_what_is_counted(folder, builder):
    made = corpus(folder, splitter())
    lengths = compute_lengths(made, builder)
    found = pieces_of(made, lengths)
    lost = sum(
        number not in found
        or len([x for _, d in found[number] for x in scored(d)])
        < len(scored(made.document(number)))
        for number in range(len(made))
    )
    assert 0 < lost <= lengths.num_truncated + len(lengths.refused)
    assert not lengths.unusable
    assert {entry.record for entry in lengths.refused} == set(range(len(made))) - found.keys()


def test_a_cut_conversation_keeps_its_first_whole_rounds(folder, builder):
    made = corpus(folder, splitter("cut"))
    lengths = compute_lengths(made, builder)
    assert lengths.num_truncated > 5
    for number, pieces in pieces_of(made, lengths).items():
        ((piece, document),) = pieces
        whole = made.document(number)
        assert document.turns == whole.turns[: len(document.turns)]
        if piece.end is not None:
            longer = whole.of(whole.turns[: len(document.turns) + 2])
            with pytest.raises(TooLong):
                builder.example(longer)


def test_refused_conversations_are_counted_with_the_reason(folder, builder):
    made = corpus(folder, splitter("refuse"))
    lengths = compute_lengths(made, builder)
    assert len(lengths.refused) > 5 and lengths.num_truncated == 0
    assert len(lengths) == len(made)
    assert lengths.num_usable == len(made) - len(lengths.refused)
    assert "positions and" in lengths.refused[0].reason
    assert f"{len(lengths.refused)} refused as too long" in lengths.describe()
    stored = lengths.store(folder / "table")
    assert stored.refused == lengths.refused


def test_without_a_splitter_a_long_conversation_is_a_bad_record(folder, builder):
    lengths = compute_lengths(corpus(folder, None), builder)
    assert not lengths.refused and not lengths.num_truncated
    assert len(lengths.unusable) > 5
    assert Counter("ConversationSplitter" in x.reason for x in lengths.unusable) == {
        True: len(lengths.unusable)
    }


def test_pieces_may_be_shorter_than_a_row(folder, builder):
    made = corpus(folder, splitter(max_positions=64))
    lengths = compute_lengths(made, builder)
    assert lengths.table[:, 0].max() <= 64


def test_a_splitter_is_for_its_own_kind_of_document(folder, builder):
    with pytest.raises(ValueError, match="ConversationSplitter splits documents of a chat format"):
        made = corpus(folder, splitter(max_positions=8), to_document=conversation_document)
        compute_lengths(made, builder)
    with pytest.raises(ValueError, match="give a corpus of conversations a ConversationSplitter"):
        compute_lengths(corpus(folder, Splitter.default_config()), builder)


def test_rounds_after_a_later_picture_are_not_without_it(folder, builder):
    made = corpus(folder, splitter())
    images = [np.zeros((1, 1, 3), np.uint8)] * 2
    words = "red circle " * 20
    turns = []
    for i, mark in enumerate(("<image>", "", "<image>", "")):
        turns.append({"role": "user", "text": f"{mark}q{i} {words}"})
        turns.append({"role": "assistant", "text": f"a{i}"})
    document = (
        ConversationDocument.default_config()
        .set(chat_format=LLaVAChatFormat.default_config().set(system=""))
        .instantiate()({"images": images, "turns": turns})
    )
    sizes = builder.without_limits()
    pieces, num_lost = made.splitter.pieces(document, lambda d: sizes.lengths(d)[0] <= 80)
    # The last round is about a picture of the third, with which it does not fit.
    assert pieces == [range(0, 1), range(1, 2), range(2, 3)] and num_lost == 1
