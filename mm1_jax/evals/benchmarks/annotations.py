"""Records from the files that the authors of a benchmark distribute.

A benchmark has a folder with its unpacked annotations and pictures. An entry that is not as
documented, or a missing picture, is an error that names file and record: a score over the rest
would not be a score of the benchmark.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mm1_jax.batch import Record
from mm1_jax.config import REQUIRED, Required, config_class
from mm1_jax.data.images import BadImage
from mm1_jax.data.readers.image_files import ImageFolder
from mm1_jax.data.record_files import BadRecord
from mm1_jax.data.sources.base import Source
from mm1_jax.evals.predictions.entries import Entry, read_entries
from mm1_jax.evals.predictions.files import read_file

HINT = "Compare with the layout in docs/evaluation.md, or unpack the file again"


class ImageFile:
    """A picture in a file, which is read when the picture is shown."""

    def __init__(self, folder: ImageFolder, name: str):
        self._folder, self._name = folder, name

    @property
    def path(self) -> Path:
        return self._folder.path / self._name

    def __str__(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        return self._folder.has(self._name)

    def __call__(self) -> bytes:
        try:
            return self._folder.read(self._name)
        except BadRecord as error:
            raise BadImage(str(error)) from error


class AnnotationSource(Source):
    """The records of a split of a benchmark, in memory except for their pictures.

    The source's test split is asked (`query_split`); its train split provides exemplars
    (`support_split`). All records have the fields `id` and `images`. Captions also have `captions`,
    and questions `question`, `answer` (for exemplars) and `answers` (all accepted answers; empty in
    splits published without answers).

    Attributes:
        remarks: Metrics about the records, added by `read`.
    """

    @config_class
    class Config(Source.Config):
        data_dir: str | None = None  # Folder of all benchmarks; set by the experiment or the tool.
        folder: Required[str] = REQUIRED  # Folder of this benchmark, relative to `data_dir`.
        # The benchmark's names of the splits.
        query_split: Required[str] = REQUIRED
        support_split: Required[str] = REQUIRED
        # (source, name of a split) -> records; raises ValueError if the files are not as
        # documented.
        read: Required[Callable[["AnnotationSource", str], list[dict[str, Any]]]] = REQUIRED

    def __init__(self, cfg: Config, *, split: str):
        super().__init__(cfg, split=split)
        self.folder = Path(cfg.data_dir or ".", cfg.folder)
        if not self.folder.is_dir():
            raise ValueError(
                f"{self.folder}: no such folder; unpack the benchmark there, or give the folder "
                "that holds it with --benchmarks_dir"
            )
        self.remarks: dict[str, float] = {}
        self._records = cfg.read(self, cfg.query_split if split == "test" else cfg.support_split)
        counts = Counter(record["id"] for record in self._records)
        if repeated := [key for key, count in counts.items() if count > 1]:
            raise ValueError(
                f"{self.folder}: {len(repeated)} ids occur more than once, the first "
                f"{repeated[0]!r}. {HINT}"
            )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]

    def fingerprint(self) -> str:
        """Digest of the records, without the contents of pictures."""
        digest = hashlib.blake2b(digest_size=8)
        for record in self._records:
            texts = [record[name] for name in ("id", "question", "captions") if name in record]
            if "instruction" in record:
                texts[1] = f"{texts[1]}\n{record['instruction']}"
            digest.update(repr((texts, record.get("answer"), len(record["images"]))).encode())
        return f"records={len(self)} digest={digest.hexdigest()}"

    def images(self, *names: str) -> list[ImageFolder]:
        """Returns folders of pictures in the folder of the benchmark."""
        return [ImageFolder(self.folder / name) for name in names]

    def file(self, *names: str) -> Path:
        """Returns the first of these files that exists, as publishers have changed names."""
        for name in names:
            if (path := self.folder / name).exists():
                return path
        raise ValueError(
            f"{self.folder / names[0]}: no such file"
            + (f", nor {', '.join(names[1:])} beside it" if names[1:] else "")
            + f". {HINT}"
        )

    def entries(self, path: Path, under: str | None = None) -> list[Entry]:
        """Returns the entries of a JSON or Parquet file, or of a list under one of its keys."""
        if path.suffix == ".parquet":
            return self._rows(path)
        if under is None:
            return [Entry(entry.values, entry.where, HINT) for entry in read_entries(path)]
        content = read_file(path)
        values = content.get(under) if isinstance(content, dict) else None
        if not isinstance(values, list) or not values:
            raise ValueError(f"{path}: expected an object with a list {under!r}. {HINT}")
        entries = []
        for number, value in enumerate(values, start=1):
            where = f"{path}, {under}, record {number}"
            if not isinstance(value, dict):
                raise ValueError(f"{where}: expected an object, got {type(value).__name__}")
            entries.append(Entry(value, where, HINT))
        return entries

    def _rows(self, path: Path) -> list[Entry]:
        try:
            rows = pq.read_table(path).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{path}: not a complete Parquet file ({error}). {HINT}") from error
        return [Entry(row, f"{path}, row {i}", HINT) for i, row in enumerate(rows, start=1)]


def most_frequent(answers: Sequence[str]) -> str:
    """Returns the most frequent answer; the first of equals."""
    return Counter(answers).most_common(1)[0][0]


def caption_record(key: str, image: ImageFile, captions: Sequence[str]) -> dict[str, Any]:
    """Returns the fields that a `CaptionTask` reads, without blank captions."""
    return {
        "id": key,
        "images": [image],
        "captions": [caption.strip() for caption in captions if caption.strip()] or [],
    }


def question_record(
    key: str, images: Sequence[ImageFile], question: str, answers: Sequence[str], **fields: Any
) -> dict[str, Any]:
    """Returns the fields that a `QuestionTask` reads.

    `answer`, which exemplars show, defaults to the most frequent one.
    """
    answer = fields.pop("answer", None) or (most_frequent(answers) if answers else "")
    return {
        "id": key,
        "images": list(images),
        "question": question.strip(),
        "answer": answer,
        "answers": list(answers),
        **fields,
    }
