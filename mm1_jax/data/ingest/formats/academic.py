"""Academic question sets in their publishers' layouts, with LLaVA's format prompts.

`LAYOUTS` is the table: the keys that identify a layout, where its images lie, and how an entry is
read. AI2D, whose questions are a file per image, is at the end.
"""

import io
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from mm1_jax.data.format_prompts import ONE_SENTENCE, OPTION_LETTER, SHORT_ANSWER
from mm1_jax.data.images import FORMATS
from mm1_jax.data.ingest.formats.base import Format
from mm1_jax.data.ingest.formats.questions import (
    Asked,
    multiple_choice,
    question_records,
    with_format_prompt,
)
from mm1_jax.data.readers.compressed import compressed, read_document
from mm1_jax.data.readers.entries import Documents, Entry, Rejected
from mm1_jax.data.readers.image_files import ImageFolder, ImageSearch, image_files
from mm1_jax.data.readers.json_files import (
    as_object,
    entries,
    is_one_wanted,
    parse_json,
    stream_json,
)
from mm1_jax.data.readers.source_files import Unit, documents_below, entry_id, source_files
from mm1_jax.data.record_files import BadRecord, RecordKind
from mm1_jax.data.records import as_list, as_text, is_key

READ_TEXT = "Read all the text in the image."
# Numbers of the splits in the entries of OCR-VQA.
_SPLITS = {"train": 1, "validation": 2, "test": 3}
_NUM_LOOKED_AT = 10
# Images of AI2D per unit.
_UNIT_IMAGES = 256

Pairs = tuple[tuple[str, Any], ...]
# (entry, format prompt) -> questions with the prompt, and answers.
ReadPairs = Callable[[Mapping[str, Any], str], Pairs]


@dataclass(frozen=True)
class Layout:
    """A layout of questions.

    Attributes:
        keys: Keys of an entry; the first layout whose keys an entry has is that of its file.
        folders: Folders of the images, relative to the file.
        image: Returns the possible names of the image.
        pairs: Returns the questions with the format prompt, and the answers.
        prompt: The format prompt.
        id: The key of the entry's id in the source.
    """

    keys: tuple[str, ...]
    folders: tuple[str, ...]
    image: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    pairs: ReadPairs
    prompt: str = SHORT_ANSWER
    id: str = "question_id"


def _one(question: str, answer: str) -> ReadPairs:
    def pairs(value: Mapping[str, Any], prompt: str) -> Pairs:
        return ((with_format_prompt(value.get(question), prompt), value.get(answer)),)

    return pairs


def _first_answer(value: Mapping[str, Any], prompt: str) -> Pairs:
    answers = as_list(value.get("answers"), "answers")
    if not answers:
        raise BadRecord("no answers")
    return ((with_format_prompt(value.get("question"), prompt), answers[0]),)


def _of_ocr_vqa(value: Mapping[str, Any], prompt: str) -> Pairs:
    questions, answers = (as_list(value.get(name), name) for name in ("questions", "answers"))
    if len(questions) != len(answers):
        raise BadRecord(f"{len(questions)} questions beside {len(answers)} answers")
    asked = (with_format_prompt(question, prompt) for question in questions)
    return tuple(zip(asked, answers, strict=True))


def _of_choices(value: Mapping[str, Any], prompt: str) -> Pairs:
    about = value.get("question"), value.get("choices"), value.get("correct_choice_idx")
    return (multiple_choice(*about, prompt),)


def _caption(value: Mapping[str, Any], prompt: str) -> Pairs:
    return ((prompt, value.get("caption_str")),)


def _text_in_image(value: Mapping[str, Any], prompt: str) -> Pairs:
    truth = as_text(value.get("ground_truth"), "ground_truth")
    parsed = as_object(parse_json(truth.encode("utf-8", "surrogatepass")))
    return ((prompt, as_object(parsed.get("gt_parse")).get("text_sequence")),)


def _named(key: str) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    return lambda value: (_key(value, key),)


def _with_extension(key: str) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    return lambda value: (f"{_key(value, key)}.jpg",)


def _of_coco(value: Mapping[str, Any]) -> tuple[Any, ...]:
    number = _key(value, "image_id")
    if not isinstance(number, int) or number < 0:
        raise BadRecord(f"image_id is {number!a:.80}, expected a number of COCO")
    name = f"{number:012d}.jpg"
    return name, f"COCO_train2014_{name}", f"COCO_val2014_{name}"


def _of_url(value: Mapping[str, Any]) -> tuple[Any, ...]:
    url = as_text(value.get("imageURL"), "imageURL")
    extension = url.rpartition("/")[2].rpartition(".")[2]
    return (f"{_key(value, 'key')}.{extension}",)


LAYOUTS: dict[str, Layout] = {
    "a_okvqa": Layout(
        ("choices", "correct_choice_idx", "image_id"),
        ("train2017", "val2017", "images", "."),
        _of_coco,
        _of_choices,
        OPTION_LETTER,
    ),
    "gqa": Layout(
        ("imageId", "question", "answer"),
        ("images", "."),
        _with_extension("imageId"),
        _one("question", "answer"),
        id="key",
    ),
    "ocr_vqa": Layout(
        ("imageURL", "questions", "answers"), ("images", "."), _of_url, _of_ocr_vqa, id="key"
    ),
    "textcaps": Layout(
        ("image_id", "caption_str"),
        ("train_images", "train_val_images/train_images", "images", "."),
        _with_extension("image_id"),
        _caption,
        ONE_SENTENCE,
        id="caption_id",
    ),
    "infovqa": Layout(
        ("image_local_name", "question", "answers"),
        ("infographicsvqa_images", "images", "."),
        _named("image_local_name"),
        _first_answer,
        id="questionId",
    ),
    "docvqa": Layout(
        ("questionId", "question", "image", "answers"),
        (".", "images"),
        _named("image"),
        _first_answer,
        id="questionId",
    ),
    "dvqa": Layout(
        ("image", "question", "answer", "question_type"),
        ("images", "."),
        _named("image"),
        _one("question", "answer"),
    ),
    "chartqa": Layout(
        ("imgname", "query", "label"),
        ("png", "."),
        _named("imgname"),
        _one("query", "label"),
        id="",
    ),
    "synthdog": Layout(
        ("file_name", "ground_truth"),
        (".",),
        _named("file_name"),
        _text_in_image,
        READ_TEXT,
        id="file_name",
    ),
}


class Academic(Format):
    """Questions of A-OKVQA, GQA, OCR-VQA, TextCaps, DVQA, ChartQA, AI2D, DocVQA, InfoVQA, SynthDoG.

    The keys of the entries decide which set it is. Each question ends with LLaVA's format prompt.
    Records of ChartQA have the source `chartqa_human` or `chartqa_augmented`, by the name of the
    file. AI2D is the folder that holds `questions`, `annotations` and `images`.

    Args:
        images: The folder or .tar of the images. By default the usual folders beside the file are
            searched; an image may have another extension than its name says.
        merge: All questions about an image become one conversation. The questions of a whole file
            are then in memory.
        prompt: Replaces the format prompt; an empty text leaves it out.
        split: The split of OCR-VQA to read: train, validation, test, or all.
        letters: Style of the letters that questions of AI2D refer to, which are drawn on the image:
            opaque boxes, transparent, or none, which rejects these questions.
        source: The name of the dataset in the records. Defaults to that of the layout.
    """

    name = "academic"
    kind = RecordKind.CONVERSATIONS

    def __init__(
        self,
        *,
        images: str | Path | None = None,
        merge: bool = False,
        prompt: str | None = None,
        split: str = "train",
        letters: str = "opaque",
        source: str | None = None,
    ):
        if split not in (*_SPLITS, "all"):
            raise ValueError(f"split={split!r}; expected {', '.join(_SPLITS)} or all")
        if letters not in ("opaque", "transparent", "none"):
            raise ValueError(f"letters={letters!r}; expected opaque, transparent or none")
        self._images = None if images is None else Path(images)
        self._merge = merge
        self._prompt = prompt
        self._split = split
        self._letters = letters
        self._source = source

    def units(self, source: Path) -> list[Unit]:
        if self._images is not None:
            image_files(self._images)
        if num := len(self._diagrams(source)):
            return [Unit(source, part) for part in range(-(-num // _UNIT_IMAGES))]
        expected = f"a JSON file of one of {', '.join(LAYOUTS)}, or a folder of AI2D"
        files = source_files(source, compressed(".json", ".jsonl"), expected, self.follow_links)
        units = [Unit(path) for path in files if is_one_wanted(_values(path), _has_layout)]
        if not units:
            raise ValueError(f"{source}: expected {expected}")
        return units

    def read(self, unit: Unit) -> Iterator[Entry]:
        if unit.path.is_dir():
            first = unit.part * _UNIT_IMAGES
            paths = self._diagrams(unit.path)[first : first + _UNIT_IMAGES]
            yield from self._read_diagrams(unit.path, paths)
            return
        name = _layout(unit.path)
        if name is None:
            # A file that is damaged from the start.
            reason = "the first entries have the keys of no layout"
            for item in _values(unit.path):
                yield item if isinstance(item, Rejected) else Rejected(item[0], reason)
            return
        layout = LAYOUTS[name]
        source = self._source or _source_of(name, unit.path)
        folders = [unit.path.parent / folder for folder in layout.folders]
        places = (
            [image_files(self._images, self.follow_links)]
            if self._images
            else [ImageFolder(folder, self.follow_links) for folder in folders if folder.is_dir()]
        )
        num_skipped = 0

        def asked() -> Iterator[Asked | Rejected]:
            nonlocal num_skipped
            for item in _values(unit.path):
                if isinstance(item, Rejected):
                    yield item
                    continue
                entry, value = item
                try:
                    value = as_object(value)
                    if self._is_skipped(name, value):
                        num_skipped += 1
                        continue
                    prompt = layout.prompt if self._prompt is None else self._prompt
                    pairs = layout.pairs(value, prompt)
                    if not pairs:
                        raise BadRecord("no questions")
                    yield Asked(entry, layout.image(value), pairs, source, value.get(layout.id))
                except BadRecord as error:
                    yield Rejected(entry, str(error))

        yield from question_records(asked(), ImageSearch(places).read, merge=self._merge)
        if num_skipped:
            yield Documents(counts={"entries_of_other_splits": num_skipped})

    def _is_skipped(self, name: str, value: Mapping[str, Any]) -> bool:
        is_split = name == "ocr_vqa" and self._split != "all"
        return is_split and value.get("split") != _SPLITS[self._split]

    def _diagrams(self, source: Path) -> list[Path]:
        """Returns AI2D's files of questions; none if the source is something else."""
        folder = source / "questions"
        if not folder.is_dir() or not (source / "annotations").is_dir():
            return []
        return documents_below(folder, (".json",), self.follow_links)

    def _read_diagrams(self, root: Path, paths: list[Path]) -> Iterator[Entry]:
        place = image_files(self._images or root / "images", self.follow_links)
        images = ImageSearch([place])

        def read(image: str, letters: str, path: Path) -> bytes:
            data = images.read(image)
            return _with_letters(data, root / "annotations" / path.name, letters)

        def asked() -> Iterator[Asked | Rejected]:
            for path in paths:
                yield from self._of_diagram(path)

        yield from question_records(asked(), read, merge=self._merge)

    def _of_diagram(self, path: Path) -> Iterator[Asked | Rejected]:
        try:
            value = as_object(parse_json(read_document(path).encode("utf-8", "surrogatepass")))
            questions = as_object(value.get("questions"))
            name = as_text(value.get("imageName"), "imageName")
        except BadRecord as error:
            yield Rejected(entry_id(path), str(error))
            return
        prompt = OPTION_LETTER if self._prompt is None else self._prompt
        for place, (question, about) in enumerate(questions.items()):
            entry = entry_id(path, place)
            try:
                about = as_object(about)
                letters = self._letters if about.get("abcLabel") else ""
                if letters == "none":
                    raise BadRecord("it asks about letters that are not drawn; set letters")
                choices = about.get("answerTexts"), about.get("correctAnswer")
                pair = multiple_choice(question, *choices, prompt)
                key = (name, letters, path)
                yield Asked(entry, key, (pair,), self._source or "ai2d", about.get("questionId"))
            except BadRecord as error:
                yield Rejected(entry, str(error))


def _with_letters(image: bytes, annotations: Path, letters: str) -> bytes:
    """Returns the image with the letters of the annotations drawn on its labels, as PNG."""
    if not letters:
        return image
    about = as_object(parse_json(read_document(annotations).encode("utf-8", "surrogatepass")))
    labels = as_object(about.get("text"))
    try:
        with PIL.Image.open(io.BytesIO(image), formats=FORMATS) as opened:
            picture = opened.convert("RGB")
        draw = PIL.ImageDraw.Draw(picture)
        for label in labels.values():
            (left, top), (right, bottom) = label["rectangle"]
            if letters == "opaque":
                draw.rectangle((left, top, right, bottom), fill="white", outline="black")
            font = PIL.ImageFont.load_default(max(8, round(0.8 * (bottom - top))))
            center = ((left + right) / 2, (top + bottom) / 2)
            draw.text(center, label["replacementText"], fill="black", font=font, anchor="mm")
        file = io.BytesIO()
        picture.save(file, "PNG")
    # Labels may hold anything, and Pillow raises nearly anything on a damaged file.
    except Exception as error:
        raise BadRecord(f"letters cannot be drawn: {type(error).__name__}: {error}") from error
    return file.getvalue()


def _values(path: Path) -> Iterator[tuple[str, Any] | Rejected]:
    """Yields the entries of a list, of JSON lines, of `data` in an object, or of a map by id.

    An entry of a map has its id as `key`.
    """
    if ".jsonl" in path.name.lower():
        yield from entries(path)
        return
    for item in stream_json(path):
        if isinstance(item, Rejected):
            yield item
        elif item.place is not None and item.key in (None, "data"):
            yield item.id, item.value
        elif item.place is None and isinstance(item.value, dict):
            yield item.id, item.value | {"key": item.key}


def _layout(path: Path) -> str | None:
    """Returns the layout of the first entry that has one."""
    items = itertools.islice(_values(path), _NUM_LOOKED_AT)
    found = (_layout_of(item[1]) for item in items if not isinstance(item, Rejected))
    return next(filter(None, found), None)


def _layout_of(value: Any) -> str | None:
    """Returns the first layout whose keys an entry has."""
    if not isinstance(value, dict):
        return None
    return next((name for name, at in LAYOUTS.items() if set(at.keys) <= value.keys()), None)


def _has_layout(value: Any) -> bool:
    return _layout_of(value) is not None


def _source_of(name: str, path: Path) -> str:
    if name == "chartqa":
        parts = ("human", "augmented")
        return next((f"{name}_{part}" for part in parts if part in path.name), name)
    return name


def _key(value: Mapping[str, Any], name: str) -> str | int:
    if not is_key(value.get(name)):
        raise BadRecord(f"{name} is {value.get(name)!a:.80}, expected a number or a string")
    return value[name]
