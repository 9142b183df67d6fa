"""What benchmarks of chat models share: a turn of a user, and options by letter."""

import string
from collections.abc import Mapping, Sequence
from typing import Any

from mm1_jax.config import config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.evals.benchmarks.base import Task, Verdict
from mm1_jax.evals.benchmarks.published import AnnotationSource, PublishedBenchmark
from mm1_jax.evals.prompts import ChatTask

LETTERS = string.ascii_uppercase
# The words that LLaVA's data has behind questions with options, and behind those of few words.
BY_LETTER = "Answer with the option's letter from the given choices directly."
IN_FEW_WORDS = "Answer the question using a single word or phrase."


class ChatBenchmark(PublishedBenchmark):
    """Asked as a user asks a chat model, without exemplars."""

    @config_class
    class Config(PublishedBenchmark.Config):
        shots: tuple[int, ...] = (0,)
        exemplar_split: str = "test"
        stop_strings: tuple[str, ...] = ("\n", "USER:")
        max_new_tokens: int = 16

    def result(self, verdict: Verdict) -> dict[str, Any]:
        return {"question_id": verdict.task.key, "prediction": verdict.answer}


def chat_corpus(source: AnnotationSource.Config, name: str, instruction: str) -> Corpus.Config:
    """Records with a `question` as turns of a user."""
    task = ChatTask.default_config().set(instruction=instruction)
    return Corpus.default_config().set(name=name, source=source, to_document=task)


def by_letter(options: Sequence[str]) -> dict[str, str]:
    """Options under their letters; raises ValueError where there are too many."""
    if len(options) > len(LETTERS):
        raise ValueError(
            f"a question has {len(options)} options, and at most {len(LETTERS)} letters"
        )
    return dict(zip(LETTERS, options, strict=False))


def with_options(question: str, options: Mapping[str, str], context: str = "") -> str:
    """The context, the question, and a line for each option."""
    lines = [context, question, *(f"{letter}. {text}" for letter, text in options.items())]
    return "\n".join(line.strip() for line in lines if line.strip())


def option_of(task: Task) -> dict[str, str]:
    """The options of a task, by letter."""
    return task.record["options"]
