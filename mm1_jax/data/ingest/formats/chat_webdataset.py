"""WebDataset's tar shards of conversations: LLaVA-OneVision-1.5 and Megatron-Energon."""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mm1_jax.batch import Record
from mm1_jax.data.format_prompts import SHORT_ANSWER
from mm1_jax.data.ingest.formats.base import Format
from mm1_jax.data.ingest.formats.chats import Turns, first_of, said_turns
from mm1_jax.data.ingest.formats.questions import (
    DESCRIBE,
    multiple_choice,
    with_format_prompt,
)
from mm1_jax.data.readers.compressed import decode_text
from mm1_jax.data.readers.entries import Documents, Entry, Rejected
from mm1_jax.data.readers.json_files import parse_json
from mm1_jax.data.readers.source_files import Unit, entry_id, source_files
from mm1_jax.data.readers.tar import read_member
from mm1_jax.data.readers.webdataset import IMAGES, Sample, samples
from mm1_jax.data.record_files import BadRecord, RecordKind
from mm1_jax.data.records import as_list, as_text, conversation_record, is_missing

_TURNS = ("messages", "conversations", "texts")
_DIGITS = re.compile(r"(\d+)")


class ChatWebdataset(Format):
    """Conversations from adjacent members that share a key: `KEY.json`, and images.

    The JSON is a list of turns, `{role, content}` or `{from, value}`; or a map with such a list
    (`messages`, `conversations`, `texts`); or one question: `context` or `question`, and `answers`
    (of which the first counts), or `choices` and `correct_choice_idx`; or a `caption`. A sample
    without JSON has its caption in `KEY.txt`. A packed sample of OneVision-1.5, with `prompts`,
    `captions` and `images` as parallel lists, becomes one record per place.

    Args:
        prompt: The question about captions.
        source: The name of the dataset in the records.
    """

    name = "chat_webdataset"
    kind = RecordKind.CONVERSATIONS

    def __init__(self, *, prompt: str = DESCRIBE, source: str | None = None):
        self._prompt = prompt
        self._source = source

    def units(self, source: Path) -> list[Unit]:
        expected = "tar shards of WebDataset, *.tar"
        files = source_files(source, (".tar",), expected, self.follow_links)
        return [Unit(path) for path in files]

    def read(self, unit: Unit) -> Iterator[Entry]:
        try:
            with unit.path.open("rb") as file:
                for item in samples(file, unit.path):
                    if isinstance(item, Sample):
                        yield from self._records(file, entry_id(unit.path, item.key), item)
                    else:
                        yield item
        except OSError as error:
            yield Rejected(entry_id(unit.path), f"it cannot be read: {error.strerror}")

    def _records(self, file: io.BufferedIOBase, entry: str, sample: Sample) -> Iterator[Entry]:
        try:
            value = self._value(file, sample)
            packed = _packed(value)
            if packed is None:
                yield self._record(file, entry, sample, _turns(value, self._prompt), _names(value))
                return
        except BadRecord as error:
            yield Rejected(entry, str(error))
            return
        for place, part in enumerate(packed):
            of_part = entry_id(entry, place)
            try:
                yield self._record(file, of_part, sample, *_turns_of_part(*part))
            except BadRecord as error:
                yield Rejected(of_part, str(error))

    def _value(self, file: io.BufferedIOBase, sample: Sample) -> Any:
        if "json" in sample.members:
            return parse_json(read_member(file, sample.members["json"]))
        if "txt" not in sample.members:
            raise BadRecord("neither .json nor .txt")
        return {"caption": decode_text(read_member(file, sample.members["txt"]))}

    def _record(
        self,
        file: io.BufferedIOBase,
        entry: str,
        sample: Sample,
        turns: Turns,
        names: list[Any] | None,
    ) -> Record | Documents:
        # Extensions such as `img0.jpg`, in the order of their numbers.
        there = sorted(
            (name for name in sample.members if name.rpartition(".")[2] in IMAGES), key=_by_number
        )
        if names is not None:
            listed = [str(name).rpartition("/")[2].lower() for name in names]
            key = sample.key.rpartition("/")[2].lower()
            there = [name.removeprefix(f"{key}.") for name in listed]
            if lost := [name for name in there if name not in sample.members]:
                raise BadRecord(f"image {lost[0]!a:.200} is not in the sample")
        images = [read_member(file, sample.members[name]) for name in there]
        return conversation_record(entry, images, turns, source_id=sample.key, source=self._source)


def _by_number(name: str) -> list[Any]:
    parts = _DIGITS.split(name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def _names(value: Any) -> list[Any] | None:
    """Returns the names of the images, if the sample lists them."""
    if not isinstance(value, dict) or is_missing(value.get("images")):
        return None
    return as_list(value["images"], "images")


def _turns(value: Any, prompt: str) -> Turns:
    if isinstance(value, list):
        return said_turns({"messages": value}, "messages")
    if not isinstance(value, dict):
        raise BadRecord(f"a {type(value).__name__}, expected a list of turns or a JSON object")
    for name in _TURNS:
        if not is_missing(value.get(name)):
            return said_turns(value, name)
    asked = first_of(value, "context", "question")
    if asked is None:
        if is_missing(value.get("caption")):
            raise BadRecord(f"none of {', '.join(_TURNS)}, context, question, caption")
        return [("user", prompt, None), ("assistant", value["caption"], None)]
    if not is_missing(value.get("choices")):
        question, answer = multiple_choice(
            asked, value["choices"], value.get("correct_choice_idx", 0)
        )
    else:
        answers = first_of(value, "answers", "answer")
        answer = answers if isinstance(answers, str) else (as_list(answers, "answers") or [None])[0]
        question = with_format_prompt(asked, SHORT_ANSWER)
    return [("user", question, None), ("assistant", answer, None)]


def _packed(value: Any) -> list[tuple[list[Any], list[Any], list[Any]]] | None:
    """Returns prompts, captions and images of each place of a packed sample; None for others."""
    if not isinstance(value, dict) or "captions" not in value:
        return None
    prompts = first_of(value, "prompts", "prompt")
    lists = [
        as_list(each, name)
        for each, name in (
            (prompts, "prompts"),
            (value["captions"], "captions"),
            (value.get("images"), "images"),
        )
    ]
    if len({len(each) for each in lists}) != 1:
        prompts, captions, images = map(len, lists)
        raise BadRecord(f"{prompts} prompts, {captions} captions and {images} images")
    return [
        (_as_items(prompt), _as_items(caption), _as_items(image))
        for prompt, caption, image in zip(*lists, strict=True)
    ]


def _as_items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if is_missing(value) else [value]


def _turns_of_part(
    prompts: list[Any], captions: list[Any], images: list[Any]
) -> tuple[Turns, list[Any]]:
    if len(prompts) != len(captions):
        raise BadRecord(f"{len(prompts)} prompts beside {len(captions)} captions")
    turns: Turns = []
    for prompt, caption in zip(prompts, captions, strict=True):
        turns += [("user", as_text(prompt, "prompt"), None), ("assistant", caption, None)]
    return turns, images
