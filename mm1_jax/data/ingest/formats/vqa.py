"""Questions in the layout of VQAv2: a file of questions, a file of annotations, and images.

Annotations may also be a list of pairs, `[[question_id, answer], ...]`, with one answer each.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mm1_jax.data.format_prompts import SHORT_ANSWER
from mm1_jax.data.ingest.formats.base import Format
from mm1_jax.data.ingest.formats.questions import (
    Asked,
    question_records,
    with_format_prompt,
)
from mm1_jax.data.readers.compressed import compressed
from mm1_jax.data.readers.entries import Entry, Rejected
from mm1_jax.data.readers.image_files import ImageFolder, ImageTar, holds_images, image_files
from mm1_jax.data.readers.json_files import as_object, stream_json
from mm1_jax.data.readers.source_files import Unit, entry_id, source_files
from mm1_jax.data.record_files import BadRecord, RecordKind
from mm1_jax.data.records import (
    as_list,
    as_text,
    is_key,
    is_missing,
)

_EXPECTED = "a JSON file of VQAv2 questions, *questions.json"
_NUMBER = re.compile(r"[0-9]{1,18}$")

Key = str | int


class Vqa(Format):
    """Conversations of one question and its most common answer; one file of questions is one unit.

    Records also have `question`, `answer`, and all given answers as `answers`. The answers of a
    whole file and the names of all images are in memory.

    Args:
        annotations: The file of answers. Defaults to the name of the file of questions with
            `annotations` or `answers_compact` in place of `questions`, with or without
            `OpenEnded_`.
        images: The folder or .tar of images, whose names end in the number `image_id`. By default
            it is searched for beside the file of questions: that file's name with `images` in place
            of `questions`, the folder of the split (`val2014`), or `images`.
        format_prompt: Questions end with LLaVA's request for a single word or phrase.
        merge: All questions about an image become one conversation, without the further fields.
        source: The name of the dataset in the records.
    """

    name = "vqa"
    kind = RecordKind.CONVERSATIONS

    def __init__(
        self,
        *,
        annotations: str | Path | None = None,
        images: str | Path | None = None,
        format_prompt: bool = False,
        merge: bool = False,
        source: str | None = None,
    ):
        self._annotations = None if annotations is None else Path(annotations)
        self._images = None if images is None else Path(images)
        self._prompt = SHORT_ANSWER if format_prompt else ""
        self._merge = merge
        self._source = source

    def units(self, source: Path) -> list[Unit]:
        files = source_files(source, compressed("questions.json"), _EXPECTED, self.follow_links)
        problems = [problem for path in files if (problem := self._problem(path))]
        # Test sets have no answers, and often lie beside the other files; `read` rejects them.
        if len(problems) == len(files):
            raise ValueError(problems[0])
        return [Unit(path) for path in files]

    def read(self, unit: Unit) -> Iterator[Entry]:
        if problem := self._problem(unit.path):
            yield Rejected(entry_id(unit.path), problem)
            return
        answers: dict[Key, list[str]] = {}
        for item in stream_json(next(filter(Path.is_file, self._answer_files(unit.path)))):
            try:
                if isinstance(item, Rejected):
                    yield item
                elif item.place is not None and item.key in (None, "annotations"):
                    key, given = _answers(item.value)
                    if key in answers:
                        raise BadRecord(f"question {key!a:.80} has been answered before")
                    answers[key] = given
            except BadRecord as error:
                yield Rejected(item.id, str(error))
        images = _NumberedImages(
            image_files(next(filter(holds_images, self._image_files(unit.path))), self.follow_links)
        )

        def asked(entry: str, value: Any) -> Asked:
            question = as_object(value)
            key = _key(question, "question_id")
            if key not in answers:
                raise BadRecord(f"no answer left for question {key!a:.80}")
            return self._asked(entry, key, question, answers.pop(key))

        items = _made(_questions(unit.path), asked)
        # A question without a format prompt is on the line of its image.
        after_image = "\n" if self._prompt or self._merge else ""
        yield from question_records(items, images.read, merge=self._merge, after_image=after_image)
        for key in answers:
            yield Rejected(entry_id(unit.path, f"answer to {key!a:.80}"), "no such question")

    def _asked(self, entry: str, key: Key, question: dict[str, Any], answers: list[str]) -> Asked:
        text = as_text(question.get("question"), "question")
        ((answer, _),) = Counter(filter(str.strip, answers)).most_common(1) or [("", 0)]
        return Asked(
            entry,
            (_key(question, "image_id"),),
            ((with_format_prompt(text, self._prompt) if self._prompt else text, answer),),
            self._source,
            key,
            {} if self._merge else {"question": text, "answer": answer, "answers": answers},
        )

    def _problem(self, path: Path) -> str:
        """Describes the file that is missing beside a file of questions; "" if there is none."""
        answers, images = self._answer_files(path), self._image_files(path)
        for option, files, is_it in (
            ("annotations", answers, Path.is_file),
            ("images", images, holds_images),
        ):
            if not any(map(is_it, files)):
                candidates = ", ".join(map(str, files))
                return f"{path}: expected one of {candidates}; set {option} to where they are"
        return ""

    def _answer_files(self, path: Path) -> list[Path]:
        if self._annotations is not None:
            return [self._annotations]
        names = (path.name, path.name.replace("OpenEnded_", ""))
        return [
            path.with_name(name.replace("questions.json", answers))
            for answers in ("annotations.json", "answers_compact.json")
            for name in dict.fromkeys(names)
        ]

    def _image_files(self, path: Path) -> list[Path]:
        if self._images is not None:
            return [self._images]
        base = path.name[: path.name.index("questions.json")]
        split = base.rstrip("_").rpartition("_")[2]
        names = (f"{base}images", f"{base}images.tar", split, "images", "images.tar")
        return [path.with_name(name) for name in names if name]


class _NumberedImages:
    """Images by name without extension, or by the number that the name ends in."""

    def __init__(self, images: ImageFolder | ImageTar):
        self._images = images
        self._names: dict[Key, list[str]] = defaultdict(list)
        for name in sorted(images.names()):
            stem = PurePosixPath(name).stem
            self._names[stem].append(name)
            if number := _NUMBER.search(stem):
                self._names[int(number[0])].append(name)

    def read(self, key: Key) -> bytes:
        names = self._names.get(key, [])
        if len(names) != 1:
            raise BadRecord(f"{len(names)} pictures are of image_id {key!a:.80}, expected one")
        return self._images.read(names[0])


def _made(
    entries: Iterable[tuple[str, Any] | Rejected], make: Callable[[str, Any], Asked]
) -> Iterator[Asked | Rejected]:
    for item in entries:
        if isinstance(item, Rejected):
            yield item
            continue
        try:
            yield make(*item)
        except BadRecord as error:
            yield Rejected(item[0], str(error))


def _questions(path: Path) -> Iterator[tuple[str, Any] | Rejected]:
    for item in stream_json(path):
        if isinstance(item, Rejected):
            yield item
        elif item.key in (None, "questions") and item.place is not None:
            yield item.id, item.value


def _answers(value: Any) -> tuple[Key, list[str]]:
    """Parses the question's id and its answers from an annotation of VQAv2, or from a pair."""
    if isinstance(value, list):
        if len(value) != 2 or not is_key(value[0]):
            raise BadRecord("expected a pair of question_id and answer")
        return value[0], [as_text(value[1], "answer")]
    annotation = as_object(value)
    listed = as_list(annotation.get("answers"), "answers")
    answers = [as_object(one).get("answer") for one in listed if not is_missing(one)]
    given = [as_text(answer, "answer") for answer in answers if not is_missing(answer)]
    if not given:
        raise BadRecord("no answers")
    return _key(annotation, "question_id"), given


def _key(value: dict[str, Any], name: str) -> Key:
    if not is_key(value.get(name)):
        raise BadRecord(f"{name} is {value.get(name)!a:.80}, expected a number or a string")
    return value[name]
