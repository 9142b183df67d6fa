"""SciQ: questions of science exams after a text that may help, four options each.

    sciq/data/test-*.parquet      as on the hub of Hugging Face (allenai/sciq)
    sciq/test.json                or as the publisher has it: train.json, valid.json, test.json

Columns: question, support (may be ""), correct_answer, distractor1, distractor2, distractor3.
"""

from collections.abc import Sequence
from typing import Any

from mm1_jax.config import config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.evals.benchmarks.likelihood import (
    OptionBenchmark,
    TextSource,
    option_record,
    some_text,
    text_corpus,
)
from mm1_jax.evals.benchmarks.published import Entry

_OPTIONS = ("distractor1", "distractor2", "distractor3", "correct_answer")


class SciQSource(TextSource):
    """A question a record; the right answer is the last option, as in the harness."""

    @config_class
    class Config(TextSource.Config):
        folder: str = "sciq"
        query_split: str = "test"
        support_split: str = "train"

    def patterns(self, split: str) -> Sequence[str]:
        publisher = {"validation": "valid"}.get(split, split)
        return (f"data/{split}-*.parquet", f"{publisher}.json", f"*/{publisher}.json")

    def record(self, entry: Entry, number: str) -> dict[str, Any]:
        options = [some_text(entry, name) for name in _OPTIONS]
        support = entry.text("support").lstrip()
        prompt = f"{support}\nQuestion: {some_text(entry, 'question')}\nAnswer:"
        return option_record(number, prompt, options, len(options) - 1)


class SciQ(OptionBenchmark):
    """`{support}\\nQuestion: ..\\nAnswer:` and an option."""

    @config_class
    class Config(OptionBenchmark.Config):
        name: str = "sciq"
        corpus: Corpus.Config = text_corpus(SciQSource.default_config(), "sciq")
