"""WinoGrande: which of two names stands at the gap of a sentence.

    winogrande/winogrande_xl/validation-*.parquet     as on the hub of Hugging Face
    winogrande/dev.jsonl  winogrande/train_xl.jsonl   or as the publisher has it (winogrande_1.1)

Columns: sentence with `_`, option1, option2, answer ("1" or "2"; "" in the test split).

Scoring is partial (Trinh and Le 2018): what is compared is how likely the rest of the sentence is
after each option, not the option.
"""

from collections.abc import Sequence
from typing import Any

from mm1_jax.batch import Document, Text
from mm1_jax.config import config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.evals.benchmarks.base import Task, Verdict
from mm1_jax.evals.benchmarks.likelihood import (
    OptionBenchmark,
    TextSource,
    label_of,
    option_record,
    some_text,
    text_corpus,
)
from mm1_jax.evals.benchmarks.published import Entry
from mm1_jax.evals.likelihood import Request
from mm1_jax.evals.prompts import few_shot


class WinoGrandeSource(TextSource):
    """A sentence a record: the prompt goes up to the gap and the right option, the rest follows."""

    @config_class
    class Config(TextSource.Config):
        folder: str = "winogrande"
        size: str = "xl"  # Of the training split, which exemplars are of.
        query_split: str = "validation"
        support_split: str = "train"

    def patterns(self, split: str) -> Sequence[str]:
        size = self.config.size
        publisher = {"validation": "dev", "train": f"train_{size}"}.get(split, split)
        return (
            f"winogrande_{size}/{split}-*.parquet",
            f"{publisher}.jsonl",
            f"*/{publisher}.jsonl",
        )

    def record(self, entry: Entry, number: str) -> dict[str, Any]:
        sentence = some_text(entry, "sentence")
        start, gap, rest = sentence.partition("_")
        if not gap or not rest.strip():
            raise entry.error(("sentence",), "a sentence with a gap, _, and a rest", sentence)
        starts = [start + some_text(entry, f"option{i}") for i in (1, 2)]
        label = label_of(entry, "answer", ("1", "2"))
        record = option_record(number, starts[label or 0], starts, label)
        # The answer of an exemplar is the rest, after the right option.
        answer = "" if label is None else rest.strip()
        return record | {"answer": answer, "rest": rest.strip()}


class WinoGrande(OptionBenchmark):
    """Accuracy in percent, by log-probability of the rest of the sentence."""

    @config_class
    class Config(OptionBenchmark.Config):
        name: str = "winogrande"
        corpus: Corpus.Config = text_corpus(WinoGrandeSource.default_config(), "winogrande")

    def requests(self, task: Task) -> list[Request]:
        cfg = self.config
        found = []
        for start in task.record["options"]:
            query = Document((Text(start, scored=False), Text(task.record["rest"])))
            prompt = few_shot(
                task.exemplars,
                query,
                joiner=cfg.answer_joiner,
                separator=cfg.exemplar_separator or "",
            )
            found.append(Request(prompt, f"{cfg.answer_joiner or ''}{task.record['rest']}"))
        return found

    def columns(self, verdicts: Sequence[Verdict]) -> dict[str, Any]:
        """Both requests have the same continuation, so lengths of options say nothing."""
        return {"acc": super().columns(verdicts)["acc"]}
