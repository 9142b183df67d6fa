"""What text-only benchmarks share: rows of Parquet or JSON, and options compared by likelihood.

The conventions are those of EleutherAI's lm-evaluation-harness, version 0.4: a prompt and each of
its options with a space between; exemplars with their answers before it, a blank line after each;
the option with the largest log-probability is chosen (`acc`), or with the largest per character of
its text (`acc_norm`) or per byte (`acc_bytes`); of equals, the first.
"""

import abc
import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging

from mm1_jax.config import config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.evals.answer_log import Answer, AnswerLog
from mm1_jax.evals.benchmarks.base import Task, Tasks, Verdict
from mm1_jax.evals.benchmarks.published import (
    HINT,
    AnnotationSource,
    Entry,
    PublishedBenchmark,
    question_corpus,
)
from mm1_jax.evals.likelihood import Likelihood, LikelihoodScorer, Request
from mm1_jax.evals.prompts import reference, text_of, without_answer
from mm1_jax.models.mm1 import MM1

# Tasks between two entries of the log, in batches: a stopped evaluation loses no more, and requests
# of like length are found to share a batch.
_BATCHES_AT_ONCE = 16


class TextSource(AnnotationSource):
    """The rows of a split: of the first of several layouts that has files.

    A row is named by its number in the split, from 0, as most of these benchmarks have no ids.
    """

    def read(self, split: str) -> list[dict[str, Any]]:
        records = []
        for path in self._files(split):
            for entry in self.rows(path):
                records.append(self.record(entry, str(len(records))))
        if not records:
            raise ValueError(f"{self.folder}: no record of split {split!r}; {HINT}")
        return records

    @abc.abstractmethod
    def patterns(self, split: str) -> Sequence[str]:
        """Where the files of a split may be in the folder, the layouts in order."""

    @abc.abstractmethod
    def record(self, entry: Entry, number: str) -> dict[str, Any]:
        """What a task is made of; raises ValueError on a row that is not as documented."""

    def rows(self, path: Path) -> list[Entry]:
        """The rows of a file."""
        if path.suffix != ".parquet":
            return self.entries(path)
        try:
            rows = pq.read_table(path).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{path}: not a whole Parquet file ({error}); {HINT}") from error
        return [Entry(row, f"{path}, row {i}", HINT) for i, row in enumerate(rows, start=1)]

    def fingerprint(self) -> str:
        """A digest of the records."""
        digest = hashlib.blake2b(digest_size=8)
        for record in self._records:
            fields = [record.get(name) for name in ("id", "question", "options", "answers")]
            digest.update(repr(fields).encode("utf-8", "replace"))
        return f"records={len(self)} digest={digest.hexdigest()}"

    def _files(self, split: str) -> list[Path]:
        patterns = self.patterns(split)
        for pattern in patterns:
            if paths := sorted(self.folder.glob(pattern)):
                return paths
        raise ValueError(
            f"{self.folder}: no file of split {split!r}, which is one of {', '.join(patterns)}; "
            f"{HINT}"
        )


def option_record(
    key: str, prompt: str, options: Sequence[str], label: int | None, **fields: Any
) -> dict[str, Any]:
    """A prompt and options to follow it; without a `label`, there is no reference."""
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
    """The place of a label among `labels`; None where the split is published without (-1, "")."""
    value = entry.values.get(name)
    if value is None or str(value) in ("", "-1"):
        return None
    if str(value) not in labels:
        raise entry.error((name,), f"one of {', '.join(labels)}, or nothing", value)
    return labels.index(str(value))


def some_text(entry: Entry, name: str) -> str:
    """A text that is not blank."""
    text = entry.text(name)
    if not text.strip():
        raise entry.error((name,), "a text that is not blank", text)
    return text


def text_corpus(source: AnnotationSource.Config, name: str) -> Corpus.Config:
    """Records with a `question`, which is the whole prompt, and an `answer`."""
    corpus = question_corpus(source, name)
    corpus.to_document.prompt = "{question}"
    return corpus


@dataclass(frozen=True)
class LikelihoodVerdict(Verdict):
    """`answer` is what was chosen; `likelihoods` are of the requests of the task, in order."""

    likelihoods: tuple[Likelihood, ...] = ()


class LikelihoodBenchmark(PublishedBenchmark):
    """Options of a task compared by their likelihoods after its prompt; nothing is generated.

    It shows no images, so a model without a vision encoder is asked as well. Prompts that are
    longer than a row lose their beginning; `truncated_prompts` says of how many tasks.
    """

    shows_images: ClassVar[bool] = False

    @config_class
    class Config(PublishedBenchmark.Config):
        shots: tuple[int, ...] = (0,)
        answer_joiner: str | None = " "
        exemplar_separator: str | None = "\n\n"
        # Positions of a row, prompt and option; None: those of a row of training.
        max_length: int | None = None
        headline: str = "acc"

    def requests(self, task: Task) -> list[Request]:
        """What is compared."""
        joiner = self.config.answer_joiner or ""
        return [Request(task.prompt, joiner + option) for option in task.record["options"]]

    def quality(self, verdicts: Sequence[Verdict]) -> np.ndarray:
        """The log-probability of what is right, less that of the best other option, in nats."""
        values = np.full(len(verdicts), np.nan)
        for i, verdict in enumerate(verdicts):
            totals = [one.log_probability for one in self.likelihoods(verdict)]
            label = verdict.task.record["label"]
            if label is not None:
                values[i] = totals.pop(label) - max(totals, default=0.0)
        return values

    def choose(self, task: Task, likelihoods: Sequence[Likelihood]) -> str:
        """The answer of the model: of equals, the first."""
        best = int(np.argmax([one.log_probability for one in likelihoods]))
        return task.record["options"][best]

    def is_right(self, task: Task, likelihoods: Sequence[Likelihood]) -> bool | None:
        """Whether the answer is right; None where there is no reference."""
        best = int(np.argmax([one.log_probability for one in likelihoods]))
        return best == task.record["label"] if self.has_reference(task) else None

    def _ask(
        self,
        model: MM1,
        shots: int,
        tasks: Tasks,
        asked: Sequence[int],
        blank: bool,
        log: AnswerLog,
        progress: Callable[[], object] | None,
    ) -> dict[str, float]:
        """Logs the likelihoods of what could be said; there is no picture to be blanked."""
        cfg = self.config
        scorer = LikelihoodScorer(
            self._tokenizer,
            image_size=self._image_size,
            max_length=cfg.max_length or self._max_sequence_length,
            batch_size=cfg.batch_size,
        )
        window = _BATCHES_AT_ONCE * cfg.batch_size
        for start in range(0, len(asked), window):
            part = [tasks[i] for i in asked[start : start + window]]
            requests = [self.requests(task) for task in part]
            found = iter(scorer(model, [*itertools.chain.from_iterable(requests)]))
            for task, own in zip(part, requests, strict=True):
                self._log(task, [next(found) for _ in own], log)
                if progress is not None:
                    progress()
        return {}

    def describe(self) -> str:
        cfg = self.config
        task = self.tasks(0)[0]
        parts = [
            f"{self.num_records} records",
            f"a prompt without exemplars: {text_of(task.prompt)!r}",
            f"followed by one of {[one.continuation for one in self.requests(task)]}",
            self._describe_exemplars(),
            f"exemplars end with {cfg.exemplar_separator!r}",
            "compared by log-probability",
        ]
        return "; ".join(parts)

    def result(self, verdict: Verdict) -> dict[str, Any]:
        likelihoods = self.likelihoods(verdict)
        return {
            "id": verdict.task.key,
            "answer": verdict.answer,
            "log_probabilities": [one.log_probability for one in likelihoods],
            "is_greedy": [one.is_greedy for one in likelihoods],
        }

    def likelihoods(self, verdict: Verdict) -> tuple[Likelihood, ...]:
        assert isinstance(verdict, LikelihoodVerdict), "made by run_shots"
        return verdict.likelihoods

    def _log(self, task: Task, likelihoods: Sequence[Likelihood], log: AnswerLog) -> None:
        log.add(
            task.key,
            Answer(json.dumps([asdict(one) for one in likelihoods])),
            prompt=text_of(without_answer(task.document)),
            reference=reference(task.document),
            chosen=self.choose(task, likelihoods),
            correct=self.is_right(task, likelihoods),
        )

    def _verdict(self, task: Task, answer: str) -> LikelihoodVerdict:
        likelihoods = [Likelihood(**fields) for fields in json.loads(answer)]
        return LikelihoodVerdict(
            task,
            self.choose(task, likelihoods),
            reference(task.document),
            self.is_right(task, likelihoods),
            likelihoods=tuple(likelihoods),
        )

    def _remarks(
        self, shots: int, verdicts: Sequence[Verdict], answers: Sequence[Answer]
    ) -> dict[str, float]:
        num_cut = sum(any(one.num_cut for one in self.likelihoods(verdict)) for verdict in verdicts)
        if not num_cut:
            return {}
        logging.warning(
            "%s with %d shots: %d of %d prompts are longer than a row and lost their beginning; "
            "use fewer shots, or set max_length, as rotary positions go on",
            self.config.name,
            shots,
            num_cut,
            len(verdicts),
        )
        return {"truncated_prompts": float(num_cut)}


class OptionBenchmark(LikelihoodBenchmark):
    """Accuracies in percent: by log-probability, and by it per character and per byte."""

    def columns(self, verdicts: Sequence[Verdict]) -> dict[str, np.ndarray]:
        def correct(size: Callable[[str], int]) -> np.ndarray:
            right = []
            for verdict in verdicts:
                options = verdict.task.record["options"]
                totals = [one.log_probability for one in self.likelihoods(verdict)]
                shares = np.array(totals) / [max(1, size(option)) for option in options]
                right.append(int(np.argmax(shares)) == verdict.task.record["label"])
            return 100 * np.array(right, float)

        return {
            "acc": correct(lambda option: 1),
            "acc_norm": correct(len),
            "acc_bytes": correct(lambda option: len(option.encode("utf-8", "replace"))),
        }
