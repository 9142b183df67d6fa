"""Filters that drop images and records when foreign files are converted.

A filter maps a record to what is left of it, and counts what it dropped. Interleaved pages lose
images and keep the order of the rest. Captions, and conversations about their images, are dropped
as a whole. The defaults are MM1's, whose interleaved documents are made like those of OBELICS.

Filters are applied in the given order, so each one sees what the previous ones left.
"""

import abc
import enum
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mm1_jax.batch import Image, Record
from mm1_jax.config import REQUIRED, Configurable, Required, config_class
from mm1_jax.data.images import BadImage, decode
from mm1_jax.data.ingest.image_keys import image_keys, load_keys
from mm1_jax.data.ingest.perceptual_hash import HammingIndex, perceptual_hash
from mm1_jax.data.ingest.record_images import RecordImage, encoded_size, images_of, without_images
from mm1_jax.data.readers.source_files import documents_below
from mm1_jax.data.record_files import RecordKind

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")


class Filtered(NamedTuple):
    """The result of a filter for a record.

    Attributes:
        record: The rest of the record; None if it is dropped.
        counts: The number of dropped images (or records, if the filter judges those) by fault.
        overlaps: Log entries for the images that are in a benchmark.
    """

    record: Record | None
    counts: Counter[str]
    overlaps: tuple[dict[str, Any], ...] = ()


class Filter(Configurable, abc.ABC):
    """Drops images or records. The result depends on the record alone."""

    def __init__(self, cfg: Configurable.Config, *, kind: RecordKind):
        super().__init__(cfg)
        if kind is RecordKind.TEXT:
            raise ValueError(
                f"{type(self).__name__} looks at images, and records of text have none; "
                "convert them without filters"
            )
        self.kind = kind

    def _raise_if_no_answers(self) -> None:
        """Raises ValueError if records of this kind have no answers."""
        if self.kind is not RecordKind.CONVERSATIONS:
            raise ValueError(
                f"{type(self).__name__} looks at answers, and records of {self.kind.value} have "
                "none; convert them without this filter"
            )

    @abc.abstractmethod
    def __call__(self, record: Record) -> Filtered: ...

    def description(self) -> dict[str, Any]:
        """Returns everything that determines the result, in JSON types."""
        fields = self._config.to_dict()
        del fields["klass"]
        return {"filter": type(self).__name__} | {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in fields.items()
        }

    def __getstate__(self) -> dict[str, Any]:
        # Pickle cannot find the class of a config by name.
        fields = {name: value for name, value in self._config.items() if name != "klass"}
        return self.__dict__ | {"_config": fields}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._config = self.default_config().set(**state["_config"])

    def _drop_images(self, record: Record, fault: Callable[[RecordImage], str | None]) -> Filtered:
        """Drops the images for which `fault` returns the name of a fault."""
        faults = {
            image.place: name
            for image in images_of(record, self.kind)
            if (name := fault(image)) is not None
        }
        return Filtered(without_images(record, self.kind, faults), Counter(faults.values()))


def apply_filters(filters: Iterable[Filter], record: Record) -> Filtered:
    """Applies filters in order; counts are prefixed with the filter's name: `ImageFilter.side`.

    `ImageFilter.records` is the number of records that this filter dropped.
    """
    counts: Counter[str] = Counter()
    overlaps: list[dict[str, Any]] = []
    for each in filters:
        name = type(each).__name__
        try:
            left = each(record)
        except Exception as error:
            error.add_note(f"in {name}, of record {record['id']!a}")
            raise
        for what, count in left.counts.items():
            counts[f"{name}.{what}"] += count
        overlaps += left.overlaps
        if left.record is None:
            counts[f"{name}.records"] += 1
            return Filtered(None, counts, tuple(overlaps))
        record = left.record
    return Filtered(record, counts, tuple(overlaps))


class ImageFilter(Filter):
    """Drops images that are unreadable, of extreme size or shape, or decoration of a page.

    Only headers are read: an image that is damaged after its header is kept.
    """

    @config_class
    class Config(Filter.Config):
        # Width over height. All bounds are inclusive.
        min_aspect_ratio: float = 1 / 2
        max_aspect_ratio: float = 2.0
        # Bounds of width and height in pixels.
        min_side: int = 100
        max_side: int = 10_000
        # Training rejects larger images (`ImageTransform.Config.max_pixels`).
        max_pixels: int = 64_000_000
        # Matched anywhere in the URL, ignoring case, so `lexicon` matches `icon` (OBELICS' rule).
        url_words: Sequence[str] = ("logo", "button", "icon", "plugin", "widget")

    def __call__(self, record: Record) -> Filtered:
        return self._drop_images(record, self._fault)

    def _fault(self, image: RecordImage) -> str | None:
        cfg = self._config
        url = (image.url or "").lower()
        if any(word in url for word in cfg.url_words):
            return "url"
        try:
            width, height = encoded_size(image.data)
        except BadImage:
            return "unreadable"
        if min(width, height) < cfg.min_side or max(width, height) > cfg.max_side:
            return "side"
        if not cfg.min_aspect_ratio * height <= width <= cfg.max_aspect_ratio * height:
            return "aspect_ratio"
        return "pixels" if width * height > cfg.max_pixels else None


class RepeatedImages(Filter):
    """Keeps the first of the images of a page that have the same URL or the same bytes.

    Records of other kinds are kept unchanged: captions have one image, and a conversation may refer
    to one image twice.
    """

    def __call__(self, record: Record) -> Filtered:
        if self.kind is not RecordKind.INTERLEAVED:
            return Filtered(record, Counter())
        seen: set[int] = set()

        def fault(image: RecordImage) -> str | None:
            keys = set(image_keys(image))
            repeated = not seen.isdisjoint(keys)
            seen.update(keys)
            return "repeated" if repeated else None

        return self._drop_images(record, fault)


class FrequentImages(Filter):
    """Drops images whose URL or bytes (by MD5) occur in more than `max_documents` documents.

    Needs an earlier pass over all records, which collects the `keys` of each record.
    `frequent_keys` merges them into a file, which is passed to `use`.
    """

    @config_class
    class Config(Filter.Config):
        max_documents: int = 10

    def __init__(self, cfg: Config, *, kind: RecordKind):
        super().__init__(cfg, kind=kind)
        self.max_documents: int = cfg.max_documents
        self._path: Path | None = None
        self._frequent: np.ndarray | None = None

    def keys(self, record: Record) -> set[int]:
        """Returns the distinct keys of the images of a record."""
        return {key for image in images_of(record, self.kind) for key in image_keys(image)}

    def use(self, path: Path) -> None:
        """Sets the file of the sorted keys that are too frequent; each process opens it itself."""
        self._path, self._frequent = path, None

    def __call__(self, record: Record) -> Filtered:
        return self._drop_images(record, self._fault)

    def _fault(self, image: RecordImage) -> str | None:
        return "frequent" if any(map(self._is_frequent, image_keys(image))) else None

    def _is_frequent(self, key: int) -> bool:
        assert self._path is not None, "FrequentImages is used before the images are counted"
        if self._frequent is None:
            self._frequent = load_keys(self._path)
        place = int(np.searchsorted(self._frequent, np.uint64(key)))
        return place < len(self._frequent) and int(self._frequent[place]) == key

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_frequent": None}


class ImageCount(Filter):
    """Drops records with too few or too many images. Belongs after the filters that drop images."""

    @config_class
    class Config(Filter.Config):
        min_images: int = 1
        max_images: int = 30

    def __call__(self, record: Record) -> Filtered:
        count = sum(1 for _ in images_of(record, self.kind))
        if count < self._config.min_images:
            return Filtered(None, Counter(["too_few"]))
        if count > self._config.max_images:
            return Filtered(None, Counter(["too_many"]))
        return Filtered(record, Counter())


class AnswerType(enum.Enum):
    """The types of answers of VQA (`answer_type` in the annotations of VQAv2)."""

    YES_NO = "yes/no"
    NUMBER = "number"
    OTHER = "other"

    @classmethod
    def of(cls, answer: str) -> "AnswerType":
        """Returns the type of an answer; numbers consist of digits only."""
        if answer.strip().lower() in ("yes", "no"):
            return cls.YES_NO
        return cls.NUMBER if answer.strip().isdecimal() else cls.OTHER


class AnswerTypes(Filter):
    """Keeps the questions whose answers have the given types, so that a mixture can weight them."""

    @config_class
    class Config(Filter.Config):
        keep: Required[tuple[str, ...]] = REQUIRED  # Any of "yes/no", "number", "other".

    def __init__(self, cfg: Config, *, kind: RecordKind):
        super().__init__(cfg, kind=kind)
        self._raise_if_no_answers()
        self._keep = frozenset(AnswerType(name) for name in cfg.keep)

    def __call__(self, record: Record) -> Filtered:
        answer = record.get("answer")
        if not isinstance(answer, str):
            return Filtered(None, Counter(["no_answer"]))
        if AnswerType.of(answer) not in self._keep:
            return Filtered(None, Counter(["other_type"]))
        return Filtered(record, Counter())


class BlackImages(Filter):
    """Drops images of one color that is black or nearly so; every image is decoded.

    Images that cannot be decoded are kept: `ImageFilter` and training judge them.
    """

    @config_class
    class Config(Filter.Config):
        # Brightness of the brightest pixel, 0 to 255.
        max_brightness: int = 8
        # Larger images are kept without a look.
        max_pixels: int = 64_000_000

    def __call__(self, record: Record) -> Filtered:
        return self._drop_images(record, self._fault)

    def _fault(self, image: RecordImage) -> str | None:
        try:
            pixels = decode(Image(image.data), max_pixels=self._config.max_pixels)
        except BadImage:
            return None
        return "black" if pixels.max() <= self._config.max_brightness else None


class AnswerQuality(Filter):
    """Drops conversations with an answer that refuses, or that repeats a word again and again."""

    @config_class
    class Config(Filter.Config):
        # A word this many times in a row drops the conversation (LLaVA-OneVision-1.5's rule).
        max_repeats: int = 8
        # An answer that begins with one of these refuses; case and apostrophes do not matter.
        refusals: Sequence[str] = (
            "i'm sorry, but i can",
            "i am sorry, but i can",
            "sorry, i can't",
            "sorry, but i can't",
            "i cannot assist",
            "i can't assist",
            "i'm unable to",
            "i am unable to",
            "as an ai language model",
        )

    def __init__(self, cfg: Config, *, kind: RecordKind):
        super().__init__(cfg, kind=kind)
        self._raise_if_no_answers()
        self._refusals = tuple(_plain(text) for text in cfg.refusals)

    def __call__(self, record: Record) -> Filtered:
        for turn in record["turns"]:
            if turn["role"] != "assistant":
                continue
            if _plain(turn["text"]).startswith(self._refusals):
                return Filtered(None, Counter(["refusal"]))
            words = turn["text"].split()
            runs = (sum(1 for _ in run) for _, run in itertools.groupby(words))
            if max(runs, default=0) >= self._config.max_repeats:
                return Filtered(None, Counter(["repeated_word"]))
        return Filtered(record, Counter())


def _plain(text: str) -> str:
    return text.strip().lower().replace("\u2019", "'")


class EvaluationOverlap(Filter):
    """Drops images of benchmarks, which it recognizes by their bytes or their `perceptual_hash`.

    The hash finds copies that were re-encoded or scaled, but mostly not those that were cropped or
    mirrored. Among 913 figures and photographs of textbooks, no two are within distance 4 of each
    other, and 1 of 416,328 pairs is within 6. Within distance 4 of the original are all copies as
    JPEG of quality 60, all copies at half the size, and 912 copies of quality 30.
    """

    @config_class
    class Config(Filter.Config):
        # Files, and folders that are searched recursively.
        images: Required[list[str]] = REQUIRED
        # In bits of 64. More bits need more comparisons and cause more false matches.
        max_distance: int = 4
        # Larger images are compared by their bytes only.
        max_pixels: int = 64_000_000

    def __init__(self, cfg: Config, *, kind: RecordKind):
        super().__init__(cfg, kind=kind)
        if not 0 <= cfg.max_distance < 32:
            raise ValueError(
                f"EvaluationOverlap.max_distance={cfg.max_distance}: expected 0 to 31 of 64 bits; "
                "unrelated pictures are 32 apart"
            )
        self._names: list[str] = []
        self._digests: dict[bytes, int] = {}
        hashes, owners = [], []
        content = hashlib.sha256()
        for name, path in benchmark_files(cfg.images):
            data = path.read_bytes()
            index, digest = len(self._names), hashlib.sha256(data).digest()
            self._names.append(name)
            self._digests.setdefault(digest, index)
            content.update(f"{name}\n".encode() + digest)
            if (value := perceptual_hash(data, max_pixels=cfg.max_pixels)) is not None:
                hashes.append(value)
                owners.append(index)
        self._content = f"{len(self._names)} images, sha256={content.hexdigest()[:16]}"
        self._owners = owners
        self._hashes = HammingIndex(np.array(hashes, np.uint64), cfg.max_distance)

    def __call__(self, record: Record) -> Filtered:
        overlaps: list[dict[str, Any]] = []

        def fault(image: RecordImage) -> str | None:
            found = self._find(image.data)
            if found is None:
                return None
            overlaps.append({"id": record["id"], "image": image.place} | found)
            return "same_bytes" if found["same_bytes"] else "looks_the_same"

        left = self._drop_images(record, fault)
        return left._replace(overlaps=tuple(overlaps))

    def description(self) -> dict[str, Any]:
        return super().description() | {"content": self._content}

    def _find(self, data: bytes) -> dict[str, Any] | None:
        index = self._digests.get(hashlib.sha256(data).digest())
        if index is not None:
            return {"benchmark": self._names[index], "same_bytes": True, "distance": 0}
        value = perceptual_hash(data, max_pixels=self._config.max_pixels)
        found = None if value is None else self._hashes.nearest(value)
        if found is None:
            return None
        name = self._names[self._owners[found[0]]]
        return {"benchmark": name, "same_bytes": False, "distance": found[1]}


def benchmark_files(names: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Yields the named image files, and those below the named folders, with short names.

    Links to folders are followed: an image that is missed here may be trained on.
    """
    for name in names:
        root = Path(name)
        if root.is_file():
            yield root.name, root
            continue
        files = documents_below(root, _SUFFIXES, follow_links=True)
        if not files:
            raise ValueError(
                f"EvaluationOverlap.images: {name!r} is neither an image file nor a folder with "
                f"any ({', '.join(_SUFFIXES)})"
            )
        for path in files:
            yield str(Path(root.name) / path.relative_to(root)), path
