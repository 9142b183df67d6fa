"""HellaSwag: which of four endings goes on with what happens.

    hellaswag/data/validation-*.parquet      as on the hub of Hugging Face (Rowan/hellaswag)
    hellaswag/hellaswag_val.jsonl            or as the publisher has it

Columns: activity_label, ctx_a, ctx_b, endings (four), label (of the test split "", or missing).
"""

import re
from collections.abc import Sequence
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
from mm1_jax.evals.benchmarks.published import Entry

# Such as [title], [header], [step] of WikiHow's pages.
_MARK = re.compile(r"\[.*?\]")


class HellaSwagSource(TextSource):
    """A beginning a record, in words without the marks of WikiHow."""

    @config_class
    class Config(TextSource.Config):
        folder: str = "hellaswag"
        query_split: str = "validation"
        support_split: str = "train"

    def patterns(self, split: str) -> Sequence[str]:
        publisher = {"validation": "val"}.get(split, split)
        return (
            f"data/{split}-*.parquet",
            f"hellaswag_{publisher}.jsonl",
            f"data/hellaswag_{publisher}.jsonl",
        )

    def record(self, entry: Entry, number: str) -> dict[str, Any]:
        # Both halves may be blank, but not missing.
        start, rest = entry.text("ctx_a"), entry.text("ctx_b")
        endings = entry.texts("endings", expected="four endings")
        if len(endings) != 4:
            raise entry.error(("endings",), "four endings", endings)
        label = label_of(entry, "label", ("0", "1", "2", "3"))
        activity = some_text(entry, "activity_label")
        prompt = plain_words(f"{activity}: {start} {rest.capitalize()}")
        return option_record(number, prompt, [plain_words(ending) for ending in endings], label)


def plain_words(text: str) -> str:
    """Without marks in brackets; a title begins a sentence. As the harness has it."""
    text = text.strip().replace(" [title]", ". ")
    return _MARK.sub("", text).replace("  ", " ")


class HellaSwag(OptionBenchmark):
    """`{activity}: {beginning}` and an ending; tables show the accuracy per character."""

    @config_class
    class Config(OptionBenchmark.Config):
        name: str = "hellaswag"
        corpus: Corpus.Config = text_corpus(HellaSwagSource.default_config(), "hellaswag")
        headline: str = "acc_norm"
