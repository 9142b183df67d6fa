"""TriviaQA: trivia with many spellings of each answer, without documents to look them up in.

    triviaqa/rc.nocontext/validation-*.parquet     as on the hub of Hugging Face
                                                   (mandarjoshi/trivia_qa)

Columns: question, answer (an object; `aliases` are the spellings that are accepted). A question
may occur more than once, for several documents, and is asked as often, as the harness asks it.

An answer is generated, up to a line end, a full stop or a comma, and right where it is one of the
aliases but for case, punctuation and space before it (`exact_match` of the harness's triviaqa).
"""

import string
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from mm1_jax.config import config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.evals.benchmarks.base import Task, Verdict
from mm1_jax.evals.benchmarks.likelihood import TextSource, some_text, text_corpus
from mm1_jax.evals.benchmarks.published import Entry, PublishedBenchmark

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TriviaQASource(TextSource):
    """A question a record; an exemplar's answer is the first alias."""

    @config_class
    class Config(TextSource.Config):
        folder: str = "triviaqa"
        part: str = "rc.nocontext"  # Or "unfiltered.nocontext", "rc.wikipedia.nocontext", ..
        query_split: str = "validation"
        support_split: str = "train"

    def patterns(self, split: str) -> Sequence[str]:
        return (f"{self.config.part}/{split}-*.parquet", f"{split}.jsonl")

    def record(self, entry: Entry, number: str) -> dict[str, Any]:
        answer = entry.get("answer", expected="an object with `aliases`")
        if not isinstance(answer, dict):
            raise entry.error(("answer",), "an object with `aliases`", answer)
        aliases = answer.get("aliases")
        # The answers of the test split are kept back.
        if not isinstance(aliases, list) or not all(isinstance(text, str) for text in aliases):
            raise entry.error(("answer",), "an object whose `aliases` are texts", answer)
        # The harness has a question mark behind those of the questions.
        question = f"Question: {some_text(entry, 'question')}?\nAnswer:"
        return {
            "id": number,
            "images": [],
            "question": question,
            "answer": aliases[0] if aliases else "",
            "answers": aliases,
        }


class TriviaQA(PublishedBenchmark):
    """`Question: ..?\\nAnswer:`; exact matches in percent."""

    shows_images: ClassVar[bool] = False

    @config_class
    class Config(PublishedBenchmark.Config):
        name: str = "triviaqa"
        corpus: Corpus.Config = text_corpus(TriviaQASource.default_config(), "triviaqa")
        shots: tuple[int, ...] = (0,)
        stop_strings: tuple[str, ...] = ("\n", ".", ",")
        answer_joiner: str | None = " "
        exemplar_separator: str | None = "\n\n"
        max_new_tokens: int = 32
        headline: str = "exact_match"

    def judge(self, task: Task, answer: str) -> bool | None:
        answers = task.record["answers"]
        return _plain(answer) in map(_plain, answers) if answers else None

    def columns(self, verdicts: Sequence[Verdict]) -> dict[str, np.ndarray]:
        return {"exact_match": 100 * np.array([bool(x.correct) for x in verdicts], float)}


def _plain(text: str) -> str:
    return text.lstrip().lower().translate(_NO_PUNCTUATION)
