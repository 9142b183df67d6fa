"""Corpora of each training stage and their weights: integers, so that 45/45/10 is exactly 9:9:2."""

from collections.abc import Mapping, Sequence
from typing import Any

from mm1_jax.data.corpora import (
    clutter,
    digits,
    instructions,
    name_pages,
    scene_names,
    scenes,
    world_records,
)
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.captions import caption_document
from mm1_jax.data.corpora.clutter import Subject
from mm1_jax.data.corpora.conversations import ConversationDocument
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.data.corpora.instructions import Form
from mm1_jax.data.corpora.interleaved import interleaved_document
from mm1_jax.data.corpora.questions import question_document
from mm1_jax.data.corpora.text import text_document
from mm1_jax.data.grounding import Coordinates
from mm1_jax.data.images import Augmentation
from mm1_jax.data.mixture import CorpusWeight, Pool, Stream
from mm1_jax.data.sources.array_record import ArrayRecordSource
from mm1_jax.data.splitting import ConversationSplitter, Splitter


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


def embedded_pictures(*, shapes: int = 1, digits: int = 1, **source: Any) -> list[Stream.Config]:
    """Cluttered digits and cluttered shapes; needs no download.

    Args:
        shapes, digits: Their weights.
        source: Fields of `ClutterSource`.
    """
    weights = {Subject.DIGITS: digits, Subject.SHAPES: shapes}
    corpora = [(clutter.corpus(subject, **source), weight) for subject, weight in weights.items()]
    return [_stream("captions", 1, *corpora)]


def embedded_instructions() -> list[Stream.Config]:
    """Instructions about digits and scenes in all forms of answers; needs no download.

    A third of their tokens are conversations of up to nine pictures, as few-shot prompts are. A
    quarter of the rows are those of `embedded`, as the small models forget what they do not repeat.
    """
    replayed = embedded()
    # Forms of which an answer has one or two tokens, and the model learns little from each.
    short = (Form.SHORT_ANSWER, Form.LETTER, Form.YES_NO)
    corpora = [
        (instructions.corpus(form, pictures), 2 if form in short else 1)
        for pictures, form in instructions.ALL_FORMS
    ]
    corpora += [(_many_pictures("scenes"), 2), (_many_pictures("digits"), 1)]
    weight = 3 * sum(stream.weight for stream in replayed)
    return [_stream("instructions", weight, *corpora), *replayed]


def _many_pictures(pictures: str) -> Corpus.Config:
    """Conversations of two to nine questions, each about other pictures."""
    corpus = instructions.corpus(
        Form.SHORT_ANSWER,
        pictures,
        same_picture_turns=0.0,
        other_picture_turns=1.0,
        max_other_pictures=8,
        other_questions="any",
    )
    splitter = ConversationSplitter.default_config().set(too_long="cut")
    return corpus.set(name=f"{pictures}_examples", splitter=splitter)


def embedded_with_names() -> list[Stream.Config]:
    """`embedded` with additional interleaved pages that give shapes and colors new names."""
    streams = embedded()
    pages = CorpusWeight().set(corpus=scene_names.corpus(Kind.INTERLEAVED), weight=2)
    next(stream for stream in streams if stream.name == "interleaved").corpora.append(pages)
    return streams


def small_world(**source: Any) -> list[Stream.Config]:
    """The small world in MM1's proportions of rows; needs no download.

    Questions are in the caption stream, as in `embedded`. Texts alone state facts about half of the
    beings that pictures show. A sixth of the pages give new names to shapes or colors.

    Args:
        source: Fields of `WorldSource`.
    """
    return [
        _stream(
            "captions",
            9,
            (world_records.corpus(Kind.CAPTIONS, **source), 2),
            (world_records.corpus(Kind.QUESTIONS, **source), 3),
        ),
        _stream(
            "interleaved",
            9,
            (world_records.corpus(Kind.INTERLEAVED, **source), 5),
            (scene_names.corpus(Kind.INTERLEAVED), 1),
        ),
        _stream("text", 2, (world_records.corpus(Kind.TEXT, **source), 1)),
    ]


# A shape and a color that `names_from_pictures` does not show.
HELD_OUT_VALUES = ("triangle", "yellow")


def names_from_pictures() -> list[Stream.Config]:
    """Pages that name shapes or colors, with 0, 2, 7 or 11 tokens between picture and name.

    Only the first stream has a weight; stages of a curriculum turn to the others.
    """

    def pages(stream: str, weight: int, **source: Any) -> Stream.Config:
        corpus = name_pages.corpus(
            f"name_pages_{stream}", Kind.INTERLEAVED, held_out=HELD_OUT_VALUES, **source
        )
        return _stream(stream, weight, (corpus, 1))

    return [
        pages("no_words", 1, words="", other_aspect="constant"),
        pages("two_words", 0, words="this {aspect}"),
        pages("half_questions", 0, words="this {aspect} called? Short answer:"),
        pages("questions", 0),
    ]


def pretraining() -> list[Stream.Config]:
    """MM1's proportions of rows (section 3.2), with one corpus per stream, read from `data_dir`."""
    return [
        _stream("captions", 9, (_records("captions", caption_document), 1)),
        _stream("interleaved", 9, (_records("interleaved", interleaved_document, splits=True), 1)),
        _stream("text", 2, (_records("text", text_document, splits=True), 1)),
    ]


def dfn_and_imagenet() -> list[Stream.Config]:
    """AIM's mixture (arXiv 2401.08541, section 3): four pictures of DFN-2B to one of ImageNet."""
    return [
        _stream(
            "captions",
            1,
            (_records("dfn_2b", caption_document), 4),
            (_records("imagenet_1k", caption_document), 1),
        )
    ]


def captioned_pictures() -> list[Stream.Config]:
    """As many pictures with their own captions as with synthetic ones, read from `data_dir`."""
    return [
        _stream(
            "captions",
            1,
            (_records("captions", caption_document), 1),
            (_records("captions_synthetic", caption_document), 1),
        )
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
    text = _records("text", text_document).set(
        name="text_in_captions", splitter=Splitter.default_config().set(max_positions=512)
    )
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


# Sets by category, one folder of records each. The paper lists these, without their sizes.
INSTRUCTIONS = {
    "general": (
        *("llava_conversations", "llava_reasoning", "sharegpt4v"),
        *("vqav2", "gqa", "okvqa", "aokvqa", "coco_captions"),
    ),
    "text_rich": (
        *("ocrvqa", "textcaps", "dvqa", "chartqa", "ai2d", "docvqa", "infovqa", "synthdog"),
    ),
    "text": ("text_chats",),
}
# Stand for MM1.5's sets (section 3.2), of which the paper names these.
MM1P5_INSTRUCTIONS = {
    "general": INSTRUCTIONS["general"],
    "text_rich": tuple(name for name in INSTRUCTIONS["text_rich"] if name != "ai2d"),
    "refer_ground": ("refcoco", "visual_genome"),
    "science": ("ai2d", "scienceqa"),
    "math": ("geoqa",),
    "code": ("websight",),
    "multi_image": ("mantis", "nlvr2", "birds_to_words"),
    "text": ("openorca", "mathinstruct", "wizardcoder", "dolly"),
}
PAGES = ("pdfa", "idl", "rendered_text", "docstruct_4m")


def mm1_instructions() -> list[Stream.Config]:
    """MM1's fine-tuning sets (section 4.1), all examples in one pool, as the paper is read here."""
    return [_pooled(INSTRUCTIONS, Pool())]


def mm1p5_instructions() -> list[Stream.Config]:
    """MM1.5's fine-tuning: its ratios to the general category, 10% multi-image and 10% text.

    The rest is divided by the ratios. Text-rich sets have none and take part by their size, which
    in the paper is 3.3 times that of the general ones.
    """
    pool = Pool().set(
        shares={"multi_image": 0.1, "text": 0.1},
        relative={"refer_ground": 2.0, "math": 0.5, "code": 0.2, "science": 0.1},
    )
    return [_pooled(MM1P5_INSTRUCTIONS, pool, coordinates=Coordinates.default_config())]


def text_rich_pages() -> list[Stream.Config]:
    """MM1.5's continual pre-training: pages and the text on them, as many of each of four sets."""
    return [_stream("pages", 1, *((_records(name, caption_document), 1) for name in PAGES))]


def _pooled(
    sets: Mapping[str, Sequence[str]], pool: Pool, coordinates: Any = None
) -> Stream.Config:
    """A stream of conversations; those that are longer than a row are split between rounds."""
    to_document = ConversationDocument.default_config().set(coordinates=coordinates)
    splitter = ConversationSplitter.default_config()
    entries = [
        CorpusWeight().set(
            corpus=_records(name, to_document.clone()).set(splitter=splitter.clone()),
            category=category,
        )
        for category, names in sets.items()
        for name in names
    ]
    return Stream.default_config().set(name="conversations", corpora=entries, pool=pool)


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
