"""User-defined corpora: the values that their source and their function must return."""

import pytest

from mm1_jax.batch import Document, Image, Text
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.record_files import BadRecord
from mm1_jax.data.sources.base import Source


class Records(Source):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {"text": f"text {index}", "number": index}


class Lines(Records):
    def __getitem__(self, index):
        return "text"


class NoLength(Source):
    def __getitem__(self, index):
        return {}


class NoSplit(Records):
    def __init__(self, cfg):
        pass


def _corpus(to_document, source=Records):
    cfg = Corpus.default_config().set(name="mine", to_document=to_document)
    return cfg.set(source=source.default_config()).instantiate(split="train")


def _generates(record):
    yield Text(record["text"])


def _made(cls, **fields):
    """Makes a document or segment without type checks, as in production."""
    segment = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(segment, name, value)
    return segment


WRONG = [
    (lambda r: None, "None"),
    (lambda r: r["text"], "a str"),
    (lambda r: [Text(r["text"])], "a list"),
    (_generates, "a generator"),
    (
        lambda r: _made(Document, segments=(r["text"],), ends=True),
        "a Document with the segment a str",
    ),
]


@pytest.mark.parametrize(("to_document", "said"), WRONG)
def test_a_result_that_is_not_a_document_names_corpus_record_and_function(to_document, said):
    with pytest.raises(ValueError) as error:
        _corpus(to_document).document(0)
    assert not isinstance(error.value, BadRecord)
    start = f"corpus 'mine', record 0: to_document={to_document.__name__} returned {said}"
    assert str(error.value).startswith(start)


@pytest.mark.parametrize(
    ("segment", "said"),
    [
        (_made(Text, text=b"bytes", scored=True), "a Text that holds a bytes"),
        (_made(Text, text="text", scored="no"), "a Text with scored=a str"),
        (_made(Image, data="picture.png"), "a Image that holds a str"),
    ],
)
def test_a_segment_must_hold_text_or_a_picture(segment, said):
    with pytest.raises(ValueError, match=said):
        _corpus(lambda r: Document((Text("a"), segment))).document(1)


def test_a_missing_field_makes_a_bad_record_and_other_errors_end_the_launch():
    with pytest.raises(BadRecord, match="record 0: KeyError 'caption'; fields: number, text"):
        _corpus(lambda r: Document((Text(r["caption"]),))).document(0)
    with pytest.raises(ValueError, match="'mine', record 0: .* failed with ZeroDivisionError"):
        _corpus(lambda r: Document((Text(str(1 // r["number"])),))).document(0)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (Lines, "corpus 'mine', record 0: Lines returned a str, expected a dict of fields"),
        (NoLength, "Corpus 'mine': NoLength does not define __len__"),
        (NoSplit, r"Corpus 'mine': NoSplit.__init__ is called as \(cfg, split=...\)"),
    ],
)
def test_an_object_that_is_not_a_source_is_named(source, said):
    with pytest.raises(ValueError, match=said):
        _corpus(lambda r: Document((Text("a"),)), source).document(0)
