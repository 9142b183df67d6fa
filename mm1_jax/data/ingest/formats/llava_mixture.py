"""Whole mixtures of LLaVA's JSON files: OneVision's YAML, and InternVL's meta file.

datasets:                                  {"chartqa": {
  - json_path: chartqa.json                    "root": "images/chartqa",
    sampling_strategy: random:25%              "annotation": "chartqa.jsonl",
                                               "repeat_time": 0.5}}
"""

import functools
import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from mm1_jax.data.ingest.formats.base import Format
from mm1_jax.data.ingest.formats.chats import LlavaEntries
from mm1_jax.data.readers.entries import Entry, Rejected
from mm1_jax.data.readers.image_files import ImageSearch, holds_images, image_files
from mm1_jax.data.readers.json_files import as_object, entries
from mm1_jax.data.readers.source_files import Unit
from mm1_jax.data.record_files import RecordKind
from mm1_jax.data.records import records_of

_EXPECTED = "a mixture: YAML with a list of datasets, or JSON of names to root and annotation"
_STRATEGY = re.compile(r"(first|end|random):(\d+)(%?)")


@dataclass(frozen=True)
class _Dataset:
    """A file of a mixture.

    Attributes:
        times: The share of the entries, or how often all are repeated (InternVL).
        strategy: Entries to read: all, or first, end or random with a number (OneVision).
    """

    name: str
    path: Path
    images: Path
    boxes: str
    times: Fraction = Fraction(1)
    strategy: str = "all"


class LlavaMixture(Format):
    """Conversations of all files that a mixture lists, with its sampling and repetitions.

    Paths are relative to the folder of the mixture. `first:N`, `end:N` and `random:N` read N
    entries, or a percentage of them; random entries depend on the seed and on the path as written.
    A `repeat_time` below 1 reads this share from the start, one above 1 makes further records.
    InternVL's boxes from 0 to 1000 become `<box>`. Records have the name of their dataset.

    Args:
        images: The folder or .tar of the images of a YAML file. Defaults to its folder.
        boxes: Convention of the boxes in the texts, as for the format llava. Defaults to internvl
            in a meta file.
        seed: Seed of random samples.
    """

    name = "llava_mixture"
    kind = RecordKind.CONVERSATIONS

    def __init__(
        self, *, images: str | Path | None = None, boxes: str | None = None, seed: int = 0
    ):
        LlavaEntries(boxes or "none")
        self._images = None if images is None else Path(images)
        self._boxes = boxes
        self._seed = seed
        self._datasets: list[_Dataset] = []

    def units(self, source: Path) -> list[Unit]:
        self._datasets = self._parsed(source)
        for dataset in self._datasets:
            if not dataset.path.is_file():
                raise ValueError(f"{source}: {dataset.name}: there is no file {dataset.path}")
            if not holds_images(dataset.images):
                raise ValueError(
                    f"{source}: {dataset.name}: {dataset.images} is neither a folder nor a .tar"
                )
        return [Unit(dataset.path, part) for part, dataset in enumerate(self._datasets)]

    def read(self, unit: Unit) -> Iterator[Entry]:
        dataset = self._datasets[unit.part]
        images = ImageSearch([image_files(dataset.images, self.follow_links)])
        makes = LlavaEntries(dataset.boxes, source=dataset.name)
        for item, repetition in self._sampled(dataset):
            name = f"{unit.part}/{{}}" + f"#{repetition}" * bool(repetition)
            if isinstance(item, Rejected):
                yield Rejected(name.format(item.id), item.reason)
                continue
            yield from records_of(
                [(name.format(item[0]), item[1])],
                lambda entry, value: makes.record(entry, as_object(value), images.read),
            )

    def _sampled(self, dataset: _Dataset) -> Iterator[tuple[Any, int]]:
        """Yields the entries of a dataset that the mixture takes, with the number of the pass."""
        count = functools.cache(lambda: sum(1 for _ in entries(dataset.path)))
        if dataset.strategy == "all":
            whole, rest = divmod(dataset.times, 1)
            for repetition in range(whole):
                yield from ((item, repetition) for item in entries(dataset.path))
            if rest:
                first = math.floor(rest * count())
                items = itertools.islice(entries(dataset.path), first)
                yield from ((item, whole) for item in items)
            return
        how, number, percent = _STRATEGY.fullmatch(dataset.strategy).groups()  # pyright: ignore
        size = int(number)
        if percent:
            size = math.ceil(size * count() / 100)
        if how == "first":
            chosen = itertools.islice(entries(dataset.path), size)
        elif how == "end":
            chosen = itertools.islice(entries(dataset.path), max(0, count() - size), None)
        else:
            seed = hashlib.sha256(f"{self._seed} {dataset.name}".encode()).digest()
            order = random.Random(seed)
            picked = set(order.sample(range(count()), min(size, count())))
            chosen = (item for place, item in enumerate(entries(dataset.path)) if place in picked)
        yield from ((item, 0) for item in chosen)

    def _parsed(self, source: Path) -> list[_Dataset]:
        try:
            text = source.read_text(encoding="utf-8")
            is_yaml = source.suffix.lower() in (".yaml", ".yml")
            content = yaml.safe_load(text) if is_yaml else json.loads(text)
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise ValueError(f"{source}: expected {_EXPECTED}: {error}") from error
        if not isinstance(content, dict) or not content:
            raise ValueError(f"{source}: expected {_EXPECTED}")
        if "datasets" in content:
            listed = content["datasets"]
            if not isinstance(listed, list) or not listed:
                raise ValueError(f"{source}: datasets: expected a list of maps with json_path")
            return [self._of_yaml(source, place, value) for place, value in enumerate(listed)]
        return [self._of_meta(source, name, value) for name, value in content.items()]

    def _of_yaml(self, source: Path, place: int, value: Any) -> _Dataset:
        where = f"{source}: datasets[{place}]"
        if not isinstance(value, dict) or not isinstance(value.get("json_path"), str):
            raise ValueError(f"{where}: expected a map with json_path")
        strategy = str(value.get("sampling_strategy", "all"))
        if strategy != "all" and not _STRATEGY.fullmatch(strategy):
            raise ValueError(
                f"{where}: sampling_strategy={strategy!r}; expected all, or first, end or random "
                "with a number or a percentage, such as first:1000 or random:25%"
            )
        return _Dataset(
            value["json_path"],
            source.parent / value["json_path"],
            self._images or source.parent,
            self._boxes or "none",
            strategy=strategy,
        )

    def _of_meta(self, source: Path, name: str, value: Any) -> _Dataset:
        if not isinstance(value, dict) or not isinstance(value.get("annotation"), str):
            raise ValueError(f"{source}: {name}: expected a map with annotation; {_EXPECTED}")
        times, root = value.get("repeat_time", 1), value.get("root", "")
        is_number = isinstance(times, int | float) and not isinstance(times, bool)
        if not is_number or not 0 < times < math.inf or not isinstance(root, str):
            raise ValueError(f"{source}: {name}: expected a root, and a repeat_time above 0")
        return _Dataset(
            name,
            source.parent / value["annotation"],
            source.parent / root,
            self._boxes or "internvl",
            # As written: the nearest binary fraction of 0.1 is a little more.
            times=Fraction(str(times)),
        )
