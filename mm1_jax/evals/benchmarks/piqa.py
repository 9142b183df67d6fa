"""PIQA: which of two ways leads to a goal.

    piqa/plain_text/validation/*.parquet          as on the hub of Hugging Face (ybisk/piqa, which
                                                  converts it), or piqa/data/validation-*.parquet
    piqa/valid.jsonl  piqa/valid-labels.lst       or as the publisher has it, labels line by line

Columns: goal, sol1, sol2, label (0 or 1; -1 in the test split, which has none).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm1_jax.config import config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.evals.benchmarks.likelihood import (
    OptionBenchmark,
    TextSource,
    label_of,
    option_record,
    some_text,
    text_corpus,
)
from mm1_jax.evals.benchmarks.published import HINT, Entry


class PiqaSource(TextSource):
    """A goal a record."""

    @config_class
    class Config(TextSource.Config):
        folder: str = "piqa"
        query_split: str = "validation"
        support_split: str = "train"

    def patterns(self, split: str) -> Sequence[str]:
        publisher = {"validation": "valid", "test": "tests"}.get(split, split)
        return (
            f"plain_text/{split}/*.parquet",
            f"data/{split}-*.parquet",
            f"{split}-*.parquet",
            f"{publisher}.jsonl",
        )

    def rows(self, path: Path) -> list[Entry]:
        rows = super().rows(path)
        labels_path = path.with_name(f"{path.stem}-labels.lst")
        if path.suffix != ".jsonl" or not labels_path.exists():
            return rows
        labels = labels_path.read_text().split()
        if len(labels) != len(rows):
            raise ValueError(
                f"{labels_path}: {len(labels)} labels, and {path} has {len(rows)} records; {HINT}"
            )
        return [
            Entry({**row.values, "label": label}, f"{row.where} and {labels_path.name}", HINT)
            for row, label in zip(rows, labels, strict=True)
        ]

    def record(self, entry: Entry, number: str) -> dict[str, Any]:
        options = [some_text(entry, "sol1"), some_text(entry, "sol2")]
        prompt = f"Question: {some_text(entry, 'goal')}\nAnswer:"
        return option_record(number, prompt, options, label_of(entry, "label", ("0", "1")))


class Piqa(OptionBenchmark):
    """`Question: {goal}\\nAnswer:` and a solution."""

    @config_class
    class Config(OptionBenchmark.Config):
        name: str = "piqa"
        corpus: Corpus.Config = text_corpus(PiqaSource.default_config(), "piqa")
