"""Corpora of each training stage and their weights: integers, so that 45/45/10 is exactly 9:9:2."""

from typing import Any

from mm1_jax.data.corpora import digits, instructions, scene_names, scenes
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.captions import caption_document
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.data.corpora.interleaved import interleaved_document
from mm1_jax.data.corpora.questions import question_document
from mm1_jax.data.corpora.text import text_document
from mm1_jax.data.images import Augmentation
from mm1_jax.data.mixture import CorpusWeight, Stream
from mm1_jax.data.sources.array_record import ArrayRecordSource
from mm1_jax.data.splitting import Splitter


def embedded() -> list[Stream.Config]:
    """Scans of digits and rendered scenes, in MM1's proportions of rows; needs no download.

    The caption stream also has questions, so that the small models answer questions zero-shot.
    """
    return [
        _stream(
            "captions",
            9,
            (digits.corpus(Kind.CAPTIONS), 1),
            (digits.corpus(Kind.QUESTIONS), 2),
            (scenes.corpus(Kind.CAPTIONS), 1),
            (scenes.corpus(Kind.QUESTIONS), 4),
        ),
        _stream(
            "interleaved",
            9,
            (digits.corpus(Kind.INTERLEAVED), 1),
            (scenes.corpus(Kind.INTERLEAVED), 1),
        ),
        _stream("text", 2, (digits.corpus(Kind.TEXT), 1), (scenes.corpus(Kind.TEXT), 1)),
    ]


def embedded_instructions() -> list[Stream.Config]:
    """Instructions about digits and scenes in all forms of answers; needs no download."""
    corpora = [
        (instructions.corpus(form, pictures), 1) for pictures, form in instructions.ALL_FORMS
    ]
    return [_stream("instructions", 1, *corpora)]


def embedded_with_names() -> list[Stream.Config]:
    """`embedded` with additional interleaved pages that give shapes and colors new names."""
    streams = embedded()
    pages = CorpusWeight().set(corpus=scene_names.corpus(Kind.INTERLEAVED), weight=2)
    next(stream for stream in streams if stream.name == "interleaved").corpora.append(pages)
    return streams


def pretraining() -> list[Stream.Config]:
    """MM1's proportions of rows (section 3.2), with one corpus per stream, read from `data_dir`."""
    return [
        _stream("captions", 9, (_records("captions", caption_document), 1)),
        _stream("interleaved", 9, (_records("interleaved", interleaved_document, splits=True), 1)),
        _stream("text", 2, (_records("text", text_document, splits=True), 1)),
    ]


def add_synthetic_captions(streams: list[Stream.Config]) -> list[Stream.Config]:
    """Takes 7% of the captions from `captions_synthetic` (MM1, section 3.2: VeCap)."""
    synthetic = _records("captions_synthetic", caption_document)
    for stream in streams:
        if stream.name == "captions":
            stream.corpora[0].weight = 93
            stream.corpora.append(CorpusWeight().set(corpus=synthetic, weight=7))
    return streams


def fill_captions(streams: list[Stream.Config]) -> list[Stream.Config]:
    """Fills the empty positions of caption rows with text: a quarter of a row with 16 images.

    This is not in the paper. It adds about as much text as the text stream has; the log counts it
    as `text_in_captions`.
    """
    text = _records("text", text_document, splits=True).set(name="text_in_captions")
    text.splitter.max_positions = 512
    for stream in streams:
        if stream.name == "captions":
            stream.fillers = [CorpusWeight().set(corpus=text)]
    return streams


def textbooks() -> list[Stream.Config]:
    """Textbooks and recipes in MM1's proportions of rows, with one corpus per folder."""
    return [
        _stream("captions", 9, (_records("openstax_captions", caption_document), 1)),
        _stream(
            "interleaved",
            9,
            (_records("openstax_chapters", interleaved_document, splits=True), 6),
            (_records("recipes", interleaved_document, splits=True), 2),
            (_records("d2l_chapters", interleaved_document, splits=True), 1),
        ),
        _stream(
            "text",
            2,
            (_records("d2l_text", text_document, splits=True), 4),
            (_records("recipes_text", text_document, splits=True), 1),
        ),
    ]


def easy_vqa() -> list[Stream.Config]:
    """The questions of easy-VQA with its own validation split, read from `data_dir`.

    They are two streams, which a config can weight: three of four questions have a yes/no answer.
    """

    def corpus(name: str) -> Corpus.Config:
        return Corpus.default_config().set(
            name=name,
            source=ArrayRecordSource.default_config().set(path=name, test_path="easy_vqa_val"),
            to_document=question_document,
            augmentation=Augmentation.default_config().set(shift=0.05, scale=0.1),
        )

    return [
        _stream("other", 1, (corpus("easy_vqa_other"), 1)),
        _stream("yes_no", 1, (corpus("easy_vqa_yes_no"), 1)),
    ]


def text() -> list[Stream.Config]:
    """One corpus of text, read from `data_dir`."""
    return [_stream("text", 1, (_records("text", text_document, splits=True), 1))]


def _records(name: str, to_document: Any, *, splits: bool = False) -> Corpus.Config:
    """A folder of records; documents longer than a row are split if `splits`, else truncated."""
    return Corpus.default_config().set(
        name=name,
        source=ArrayRecordSource.default_config().set(path=name),
        to_document=to_document,
        splitter=Splitter.default_config() if splits else None,
    )


def _stream(name: str, weight: int, *corpora: tuple) -> Stream.Config:
    entries = [CorpusWeight().set(corpus=corpus, weight=share) for corpus, share in corpora]
    return Stream.default_config().set(name=name, weight=weight, corpora=entries)
