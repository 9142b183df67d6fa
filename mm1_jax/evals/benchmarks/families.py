"""Constructors of benchmarks: one call with name, source and scoring returns the config.

question_benchmark("textvqa", source, vqa_accuracy)
"""

import json
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mm1_jax.config import ConfigBase
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.sources.base import Source
from mm1_jax.evals.asking import compare_options
from mm1_jax.evals.benchmark import Benchmark, Verdict
from mm1_jax.evals.benchmarks.annotations import AnnotationSource
from mm1_jax.evals.judge import Grades
from mm1_jax.evals.prompts import CaptionTask, ChatTask, QuestionTask
from mm1_jax.evals.scoring.captions import captions
from mm1_jax.evals.scoring.items import Scoring
from mm1_jax.evals.scoring.judged import ungraded

LETTERS = string.ascii_uppercase


def annotations(read: Any, folder: str, query_split: str, support_split: str) -> Any:
    """Returns the config of a source whose records `read` returns."""
    return AnnotationSource.default_config().set(
        read=read, folder=folder, query_split=query_split, support_split=support_split
    )


def caption_benchmark(name: str, source: Source.Config, **fields: Any) -> Benchmark.Config:
    """Captions after `{image} A photo of`, scored by CIDEr-D; tables show 100 times its value."""
    defaults = {
        "answer_joiner": " ",
        "exemplar_separator": "\n",
        "max_new_tokens": 30,
        "headline": "CIDEr",
        "headline_scale": 100.0,
        "predictions": caption_predictions,
    }
    task = CaptionTask.default_config()
    return _published(name, source, task, captions, defaults | fields)


def question_benchmark(
    name: str, source: Source.Config, scoring: Scoring, **fields: Any
) -> Benchmark.Config:
    """Answers after `{image} Question: .. Short answer:`, up to the end of a line or sentence."""
    defaults = {
        "stop_strings": ("\n", ".", ",", "Question"),
        "answer_joiner": " ",
        "exemplar_separator": "\n",
        "max_new_tokens": 10,
        "headline": "acc_processed",
        "predictions": answer_predictions,
    }
    task = QuestionTask.default_config()
    return _published(name, source, task, scoring, defaults | fields)


def chat_benchmark(
    name: str, source: Source.Config, scoring: Scoring, instruction: str, **fields: Any
) -> Benchmark.Config:
    """Questions of a user to a chat model, each followed by an instruction; without exemplars."""
    defaults = {
        "shots": (0,),
        "exemplar_split": "test",
        "stop_strings": ("\n", "USER:"),
        "max_new_tokens": 16,
        "predictions": chat_predictions,
    }
    task = ChatTask.default_config().set(instruction=instruction)
    return _published(name, source, task, scoring, defaults | fields)


def judged_benchmark(
    name: str, source: Source.Config, grading: Callable[..., Grades], **fields: Any
) -> Benchmark.Config:
    """Open questions with long answers; without a judge, answers are written but not scored."""
    # Answers may have several lines.
    defaults = {"stop_strings": ("USER:",), "max_new_tokens": 512, "num_judge_runs": 1}
    return chat_benchmark(name, source, ungraded, "", grading=grading, **defaults | fields)


def text_benchmark(
    name: str, source: Source.Config, scoring: Scoring, **fields: Any
) -> Benchmark.Config:
    """Options after a text, compared by likelihood.

    Follows EleutherAI's lm-evaluation-harness 0.4: a space before an option, a blank line after
    each exemplar. No images are shown, so models without a vision encoder can be asked.
    """
    defaults = {
        "asking": compare_options,
        "shows_images": False,
        "shots": (0,),
        "answer_joiner": " ",
        "exemplar_separator": "\n\n",
        "headline": "acc",
        "predictions": option_predictions,
    }
    # The question of a record is the whole prompt.
    task = QuestionTask.default_config().set(prompt="{question}")
    return _published(name, source, task, scoring, defaults | fields)


def _published(
    name: str, source: Source.Config, task: ConfigBase, scoring: Scoring, fields: Mapping[str, Any]
) -> Benchmark.Config:
    """Returns a config that asks the whole split unless a field limits it."""
    defaults = {
        "num_few_shot_examples": None,
        "blank_shots": (),
        "batch_size": 16,
        "headline_scale": 1.0,
    }
    corpus = Corpus.default_config().set(name=name, source=source, to_document=task)
    cfg = Benchmark.default_config().set(name=name, corpus=corpus, scoring=scoring)
    return cfg.set(**defaults | dict(fields))


def json_list(entries: Iterable[Mapping[str, Any]]) -> tuple[str, str]:
    """Returns suffix and content of a predictions file: a list of objects."""
    return ".json", json.dumps([*entries], ensure_ascii=False, indent=0)


def json_id(key: str) -> int | str:
    """Returns an id as the benchmark's server expects it: an integer if it looks like one."""
    return int(key) if key.isascii() and key.isdecimal() and str(int(key)) == key else key


def caption_predictions(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    return json_list({"image_id": json_id(x.task.key), "caption": x.answer} for x in verdicts)


def answer_predictions(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    return json_list({"question_id": json_id(x.task.key), "answer": x.answer} for x in verdicts)


def chat_predictions(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    return json_list({"question_id": x.task.key, "prediction": x.answer} for x in verdicts)


def option_predictions(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    return json_list(
        {
            "id": x.task.key,
            "answer": x.answer,
            "log_probabilities": [one.log_probability for one in x.item.likelihoods],
            "is_greedy": [one.is_greedy for one in x.item.likelihoods],
        }
        for x in verdicts
    )


def by_letter(options: Sequence[str]) -> dict[str, str]:
    """Returns the options by letter. Raises ValueError if there are too many."""
    if len(options) > len(LETTERS):
        raise ValueError(
            f"a question has {len(options)} options, but there are {len(LETTERS)} letters"
        )
    return dict(zip(LETTERS, options, strict=False))


def with_options(question: str, options: Mapping[str, str], context: str = "") -> str:
    """Returns the context, the question, and one line per option."""
    lines = [context, question, *(f"{letter}. {text}" for letter, text in options.items())]
    return "\n".join(line.strip() for line in lines if line.strip())
