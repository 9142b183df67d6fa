"""MMBench: questions with options, asked once per option with the options rotated."""

import base64
import binascii
from collections.abc import Sequence
from typing import Any

from mm1_jax.data.format_prompts import OPTION_LETTER
from mm1_jax.data.images import BadImage
from mm1_jax.evals.benchmark import Benchmark, Verdict
from mm1_jax.evals.benchmarks.annotations import AnnotationSource, question_record
from mm1_jax.evals.benchmarks.families import annotations, chat_benchmark, json_list, with_options
from mm1_jax.evals.predictions.choices import lettered_options
from mm1_jax.evals.scoring import multiple_choice
from mm1_jax.evals.scoring.multiple_choice import NOTHING


def mmbench() -> Benchmark.Config:
    """MMBench: questions with options, asked once per option with the options rotated.

        mmbench/mmbench_dev_20230712.tsv     index, question, hint, A .. D, answer, image (base64)

    The indices of a question's rounds differ by multiples of a million.
    """
    source = annotations(read_mmbench, "mmbench", "dev_20230712", "dev_20230712")
    return chat_benchmark(
        "mmbench",
        source,
        multiple_choice.mmbench,
        OPTION_LETTER,
        headline="circular_acc",
        predictions=by_index,
    )


def by_index(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    return json_list(
        {
            "index": int(x.task.key),
            "options": x.task.record["options"],
            "answer": x.task.record["answer"],
            "prediction": x.answer,
        }
        for x in verdicts
    )


class EncodedImage:
    """A picture in base64, decoded when it is shown."""

    def __init__(self, text: str):
        self._text = text

    def __call__(self) -> bytes:
        try:
            return base64.b64decode(self._text, validate=True)
        except binascii.Error as error:
            raise BadImage(f"not base64: {error}") from error


def read_mmbench(files: AnnotationSource, split: str) -> list[dict[str, Any]]:
    """Returns one record per round of a question."""
    path = files.file(f"mmbench_{split}.tsv", f"MMBench_{split.upper()}.tsv")
    records = []
    images: dict[str, str] = {}
    for entry in files.entries(path):
        options = lettered_options(entry) or {}
        if len(options) < 2:
            raise ValueError(f"{entry.where}: has {len(options)} options, expected 2 or more")
        index, image = entry.integer("index"), entry.text("image")
        # In later files, the field may be the index of another round with the same picture.
        image = images.get(image, image)
        images[str(index)] = image
        answers = []
        if entry.has("answer") and entry.text("answer") not in NOTHING:
            answers = [entry.text("answer")]
            if answers[0] not in options:
                raise entry.error(("answer",), f"one of {', '.join(options)}", answers[0])
        hint = entry.text("hint") if entry.has("hint") else ""
        question = with_options(entry.text("question"), options, "" if hint in NOTHING else hint)
        record = question_record(str(index), (), question, answers, options=options)
        records.append(record | {"images": [EncodedImage(image)]})
    return records
