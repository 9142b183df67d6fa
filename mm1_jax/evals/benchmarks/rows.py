"""Source of text-only benchmarks: rows of Parquet, JSON or JSON lines in one of several layouts."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mm1_jax.config import REQUIRED, Required, config_class
from mm1_jax.evals.benchmarks.annotations import HINT, AnnotationSource, Entry


def read_rows(files: Any, split: str) -> list[dict[str, Any]]:
    """Reads the records of a split.

    Most of these benchmarks have no ids, so a row is identified by its index in the split.
    """
    records: list[dict[str, Any]] = []
    for path in _row_files(files, split):
        for entry in _rows(files, path):
            records.append(files.config.row(entry, str(len(records))))
    if not records:
        raise ValueError(f"{files.folder}: no record of split {split!r}. {HINT}")
    return records


def _row_files(files: Any, split: str) -> list[Path]:
    cfg = files.config
    publisher = cfg.publisher.get(split, split).format(size=cfg.size)
    names = {"split": split, "publisher": publisher, "part": cfg.part, "size": cfg.size}
    patterns = [pattern.format(**names) for pattern in cfg.patterns]
    for pattern in patterns:
        if paths := sorted(files.folder.glob(pattern)):
            return paths
    raise ValueError(
        f"{files.folder}: no file of split {split!r}; expected {' or '.join(patterns)}. {HINT}"
    )


def _rows(files: Any, path: Path) -> list[Entry]:
    """Reads the rows of a file; JSON lines may have their labels in a separate file."""
    rows = files.entries(path)
    labels_path = path.with_name(f"{path.stem}-labels.lst")
    if path.suffix != ".jsonl" or not labels_path.exists():
        return rows
    labels = labels_path.read_text().split()
    if len(labels) != len(rows):
        raise ValueError(
            f"{labels_path}: has {len(labels)} labels, but {path} has {len(rows)} records. {HINT}"
        )
    return [
        Entry({**row.values, "label": label}, f"{row.where} and {labels_path.name}", HINT)
        for row, label in zip(rows, labels, strict=True)
    ]


class RowSource(AnnotationSource):
    """The rows of a split, in the first of several layouts that has files."""

    @config_class
    class Config(AnnotationSource.Config):
        # Possible paths of a split's files in the folder, which may contain `{split}`,
        # `{publisher}`, `{part}` and `{size}`; the first that has files counts.
        patterns: Required[tuple[str, ...]] = REQUIRED
        # The publisher's name of a split, if it differs from the name on the hub.
        publisher: dict[str, str] = {}
        # (row, its index) -> record; raises ValueError if the row is not as documented.
        row: Required[Callable[[Entry, str], dict[str, Any]]] = REQUIRED
        part: str | None = None  # Name of one of several parts of a benchmark.
        size: str | None = None  # Name of one of several sizes of a training split.
        read: Any = read_rows

    def fingerprint(self) -> str:
        """Digest of the records."""
        digest = hashlib.blake2b(digest_size=8)
        for record in self._records:
            fields = [record.get(name) for name in ("id", "question", "options", "answers")]
            digest.update(repr(fields).encode("utf-8", "replace"))
        return f"records={len(self)} digest={digest.hexdigest()}"


def option_record(
    key: str, prompt: str, options: Sequence[str], label: int | None, **fields: Any
) -> dict[str, Any]:
    """Returns a record of a prompt and its options; None as `label` means no reference."""
    answers = [] if label is None else [options[label]]
    return {
        "id": key,
        "images": [],
        "question": prompt,
        "answer": answers[0] if answers else "",
        "answers": answers,
        "options": list(options),
        "label": label,
        **fields,
    }


def label_of(entry: Entry, name: str, labels: Sequence[str]) -> int | None:
    """Returns the index of a label in `labels`; None in splits without labels (none, "" or -1)."""
    value = entry.values.get(name)
    if value is None or str(value) in ("", "-1"):
        return None
    if str(value) not in labels:
        raise entry.error((name,), f"one of {', '.join(labels)}, or nothing", value)
    return labels.index(str(value))


def some_text(entry: Entry, name: str) -> str:
    """Returns a text that is not blank."""
    text = entry.text(name)
    if not text.strip():
        raise entry.error((name,), "a text that is not blank", text)
    return text
