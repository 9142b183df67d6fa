"""ARC, easy and challenge: questions of school exams, three to five options each.

    arc/ARC-Easy/test-*.parquet               as on the hub of Hugging Face (allenai/ai2_arc)
    arc/ARC-Easy/ARC-Easy-Test.jsonl          or as the publisher has it (ARC-V1-Feb2018)

Columns: id, question, choices (text and label, lists), answerKey; of the publisher, question is an
object of stem and choices. The other part is ARC-Challenge.
"""

from collections.abc import Sequence
from typing import Any

from mm1_jax.config import REQUIRED, Required, config_class
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

_PUBLISHER = {"train": "Train", "validation": "Dev", "test": "Test"}


class ArcSource(TextSource):
    """A question a record."""

    @config_class
    class Config(TextSource.Config):
        folder: str = "arc"
        part: Required[str] = REQUIRED  # "ARC-Easy" or "ARC-Challenge".
        query_split: str = "test"
        support_split: str = "train"

    def patterns(self, split: str) -> Sequence[str]:
        part = self.config.part
        name = f"{part}/{part}-{_PUBLISHER.get(split, split)}.jsonl"
        return (f"{part}/{split}-*.parquet", name, f"*/{name}")

    def record(self, entry: Entry, number: str) -> dict[str, Any]:
        question = entry.values.get("question")
        if isinstance(question, dict):
            entry = Entry({**entry.values, **question, "question": None}, entry.where, HINT)
            text = some_text(entry, "stem")
            pairs = entry.values.get("choices")
        else:
            text, pairs = some_text(entry, "question"), _pairs(entry.values.get("choices"))
        if not isinstance(pairs, list) or len(pairs) < 2 or not all(map(_is_choice, pairs)):
            raise entry.error(("choices",), "two choices or more, each a text and a label", pairs)
        labels = [str(pair["label"]) for pair in pairs]
        label = label_of(entry, "answerKey", labels)
        options = [pair["text"] for pair in pairs]
        return option_record(entry.key("id"), f"Question: {text}\nAnswer:", options, label)


def _pairs(choices: Any) -> Any:
    """A list of objects, of an object of lists."""
    if not isinstance(choices, dict):
        return choices
    texts, labels = choices.get("text"), choices.get("label")
    if not isinstance(texts, list) or not isinstance(labels, list) or len(texts) != len(labels):
        return choices
    return [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]


def _is_choice(pair: Any) -> bool:
    return isinstance(pair, dict) and all(isinstance(pair.get(x), str) for x in ("text", "label"))


def _corpus(name: str, part: str) -> Corpus.Config:
    return text_corpus(ArcSource.default_config().set(part=part), name)


class ArcEasy(OptionBenchmark):
    """`Question: ..\\nAnswer:` and an option."""

    @config_class
    class Config(OptionBenchmark.Config):
        name: str = "arc_easy"
        corpus: Corpus.Config = _corpus("arc_easy", "ARC-Easy")


class ArcChallenge(OptionBenchmark):
    """The same of questions that retrieval and co-occurrence of words got wrong."""

    @config_class
    class Config(OptionBenchmark.Config):
        name: str = "arc_challenge"
        corpus: Corpus.Config = _corpus("arc_challenge", "ARC-Challenge")
        headline: str = "acc_norm"
