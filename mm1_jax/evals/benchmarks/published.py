"""What published benchmarks share: records from the files that their authors distribute.

A benchmark has a folder, with annotations and pictures as they are unpacked. An entry that is not
as documented is an error that names file and record, and so is a picture that is not there: a score
of the rest would be one of another benchmark.
"""

import abc
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mm1_jax.batch import Record
from mm1_jax.config import REQUIRED, Required, config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.images import BadImage
from mm1_jax.data.readers.image_files import ImageFolder
from mm1_jax.data.record_files import BadRecord
from mm1_jax.data.sources.base import Source
from mm1_jax.evals.benchmarks.base import Benchmark, Task, Tasks, Verdict
from mm1_jax.evals.metrics.captions import cider_d, rouge_l, tokenized
from mm1_jax.evals.metrics.vqa import official_accuracy, processed_accuracy
from mm1_jax.evals.predictions.files import read_file
from mm1_jax.evals.predictions.records import Record as Entry
from mm1_jax.evals.predictions.records import read_records
from mm1_jax.evals.prompts import CaptionTask, QuestionTask
from mm1_jax.field_types import Positive, PositiveInt

HINT = "Compare with the layout in docs/evaluation.md, or unpack the file again"


class ImageFile:
    """A picture in a file, which is read when it is looked at."""

    def __init__(self, folder: ImageFolder, name: str):
        self._folder, self._name = folder, name

    @property
    def path(self) -> Path:
        return self._folder.path / self._name

    def exists(self) -> bool:
        return self._folder.has(self._name)

    def __call__(self) -> bytes:
        try:
            return self._folder.read(self._name)
        except BadRecord as error:
            raise BadImage(str(error)) from error


class AnnotationSource(Source):
    """The records of a split of a benchmark, all in memory but for their pictures.

    The test split of a source is the one that is asked, its train split the one that exemplars are
    of. Fields of a record: `id`, `images`, and of questions `question`, `answer` (what an exemplar
    says) and `answers` (all that is accepted; none where a split is published without), of captions
    `captions`.
    """

    @config_class
    class Config(Source.Config):
        data_dir: str | None = None  # Of all benchmarks; set by the experiment or the tool.
        folder: Required[str] = REQUIRED  # From `data_dir` on.
        # The names of the splits, as the benchmark calls them.
        query_split: Required[str] = REQUIRED
        support_split: Required[str] = REQUIRED

    def __init__(self, cfg: Config, *, split: str):
        super().__init__(cfg, split=split)
        self.folder = Path(cfg.data_dir or ".", cfg.folder)
        if not self.folder.is_dir():
            raise ValueError(
                f"{self.folder}: no such folder; unpack the benchmark there, or give the folder "
                "that holds it with --benchmarks_dir"
            )
        self._records = self.read(cfg.query_split if split == "test" else cfg.support_split)
        counts = Counter(record["id"] for record in self._records)
        if repeated := [key for key, count in counts.items() if count > 1]:
            raise ValueError(
                f"{self.folder}: {len(repeated)} ids occur more than once, the first "
                f"{repeated[0]!r}; {HINT}"
            )

    @abc.abstractmethod
    def read(self, split: str) -> list[dict[str, Any]]:
        """The records of a split; raises ValueError on files that are not as documented."""

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]

    def fingerprint(self) -> str:
        """A digest of the records, not of what their pictures show."""
        digest = hashlib.blake2b(digest_size=8)
        for record in self._records:
            texts = [record[name] for name in ("id", "question", "captions") if name in record]
            digest.update(repr((texts, record.get("answer"), len(record["images"]))).encode())
        return f"records={len(self)} digest={digest.hexdigest()}"

    def images(self, *names: str) -> list[ImageFolder]:
        """Folders of pictures, by name, in the folder of the benchmark."""
        return [ImageFolder(self.folder / name) for name in names]

    def file(self, *names: str) -> Path:
        """The first of these files that is there: publishers changed names."""
        for name in names:
            if (path := self.folder / name).exists():
                return path
        raise ValueError(
            f"{self.folder / names[0]}: no such file"
            + (f", nor {', '.join(names[1:])} beside it" if names[1:] else "")
            + f"; {HINT}"
        )

    def entries(self, path: Path, under: str | None = None) -> list[Entry]:
        """The entries of a file, or of the list `under` a key of it."""
        if under is None:
            return [Entry(entry.values, entry.where, HINT) for entry in read_records(path)]
        content = read_file(path)
        values = content.get(under) if isinstance(content, dict) else None
        if not isinstance(values, list) or not values:
            raise ValueError(f"{path}: expected an object with a list {under!r}; {HINT}")
        entries = []
        for number, value in enumerate(values, start=1):
            where = f"{path}, {under}, record {number}"
            if not isinstance(value, dict):
                raise ValueError(f"{where}: expected an object, got {type(value).__name__}")
            entries.append(Entry(value, where, HINT))
        return entries


def most_frequent(answers: Sequence[str]) -> str:
    """The answer of most people, of several the first: what an exemplar says."""
    return Counter(answers).most_common(1)[0][0]


class PublishedBenchmark(Benchmark):
    """A benchmark that others publish scores of; all of its split is asked unless `limit` says."""

    @config_class
    class Config(Benchmark.Config):
        num_few_shot_examples: PositiveInt | None = None
        blank_shots: tuple[int, ...] = ()
        batch_size: PositiveInt = 16
        headline: Required[str] = REQUIRED
        headline_scale: Positive = 1.0
        # Whether a picture that is not there is only counted; it is not shown then.
        allow_missing_images: bool = False

    def check(self, tasks: Tasks) -> None:
        if self.config.allow_missing_images:
            return
        # Each once: many tasks may show a picture.
        files = {
            image.data.path: image.data
            for task in tasks
            for image in task.prompt.images
            if isinstance(image.data, ImageFile)
        }
        if missing := [path for path, file in files.items() if not file.exists()]:
            raise ValueError(
                f"{self.config.name}: {len(missing)} pictures are not there, the first "
                f"{missing[0]}; unpack them, or set allow_missing_images=True to have them counted "
                "and not shown"
            )

    def score(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        labelled = [verdict for verdict in verdicts if self.has_reference(verdict.task)]
        scores = super().score(labelled) if labelled else {}
        if len(labelled) < len(verdicts):
            scores["without_reference"] = float(len(verdicts) - len(labelled))
        return {"n": float(len(verdicts))} | scores

    def intervals(self, verdicts: Sequence[Verdict]) -> dict[str, tuple[float, float]]:
        labelled = [verdict for verdict in verdicts if self.has_reference(verdict.task)]
        return super().intervals(labelled) if labelled else {}

    def has_reference(self, task: Task) -> bool:
        return bool(task.record.get("answers"))

    def quality(self, verdicts: Sequence[Verdict]) -> np.ndarray:
        """As of others, of the answers that have a reference."""
        places = [i for i, x in enumerate(verdicts) if self.has_reference(x.task)]
        values = np.full(len(verdicts), np.nan)
        values[places] = super().quality([verdicts[i] for i in places])
        return values

    def result(self, verdict: Verdict) -> dict[str, Any]:
        """An entry of a file of predictions, as the benchmark's server and `--score_only` have."""
        return {"question_id": _id(verdict.task.key), "answer": verdict.answer}

    def predictions(self, verdicts: Sequence[Verdict]) -> tuple[str, str]:
        """How a file of predictions ends, and its content: a list of results."""
        entries = [self.result(verdict) for verdict in verdicts]
        return ".json", json.dumps(entries, ensure_ascii=False, indent=0)


def _id(key: str) -> int | str:
    return int(key) if key.isascii() and key.isdecimal() and str(int(key)) == key else key


class CaptionBenchmark(PublishedBenchmark):
    """`{image} A photo of`, scored by CIDEr-D.

    Tables show 100 times the CIDEr; the metric is what the official code calls it.
    """

    @config_class
    class Config(PublishedBenchmark.Config):
        stop_strings: tuple[str, ...] = ("\n",)
        answer_joiner: str | None = " "
        exemplar_separator: str | None = "\n"
        max_new_tokens: PositiveInt = 30
        headline: str = "CIDEr"
        headline_scale: Positive = 100.0

    def has_reference(self, task: Task) -> bool:
        return bool(task.record["captions"])

    def judge(self, task: Task, answer: str) -> bool | None:
        """Captions are right to a degree, and only beside all others."""
        return None

    def columns(self, verdicts: Sequence[Verdict]) -> dict[str, np.ndarray]:
        predictions = {verdict.task.key: verdict.answer for verdict in verdicts}
        references = {verdict.task.key: verdict.task.record["captions"] for verdict in verdicts}
        candidates, sets = tokenized(predictions, references)
        # Document frequencies are those of all captions, in every draw of the bootstrap too.
        return {
            "CIDEr": np.asarray(cider_d(candidates, sets), float),
            "ROUGE_L": np.asarray(rouge_l(candidates, sets), float),
        }

    def result(self, verdict: Verdict) -> dict[str, Any]:
        return {"image_id": _id(verdict.task.key), "caption": verdict.answer}


class VqaBenchmark(PublishedBenchmark):
    """`{image} Question: .. Short answer:`, scored by VQA accuracy, in percent."""

    @config_class
    class Config(PublishedBenchmark.Config):
        stop_strings: tuple[str, ...] = ("\n", ".", ",", "Question")
        answer_joiner: str | None = " "
        exemplar_separator: str | None = "\n"
        max_new_tokens: PositiveInt = 10
        headline: str = "acc_processed"

    def judge(self, task: Task, answer: str) -> bool | None:
        """Right where at least half of the point is won."""
        answers = task.record["answers"]
        return processed_accuracy(answer, answers) >= 0.5 if answers else None

    def columns(self, verdicts: Sequence[Verdict]) -> dict[str, np.ndarray]:
        cases = [(verdict.answer, verdict.task.record["answers"]) for verdict in verdicts]
        return {
            "acc_official": 100 * np.array([official_accuracy(*case) for case in cases]),
            "acc_processed": 100 * np.array([processed_accuracy(*case) for case in cases]),
        }


def caption_corpus(source: Source.Config, name: str) -> Corpus.Config:
    """Records with `captions` as tasks."""
    return Corpus.default_config().set(
        name=name, source=source, to_document=CaptionTask.default_config()
    )


def question_corpus(source: Source.Config, name: str) -> Corpus.Config:
    """Records with a `question` as tasks."""
    return Corpus.default_config().set(
        name=name, source=source, to_document=QuestionTask.default_config()
    )


def caption_record(key: str, image: ImageFile, captions: Sequence[str]) -> dict[str, Any]:
    """What a `CaptionTask` reads; blank captions are none."""
    return {
        "id": key,
        "images": [image],
        "captions": [caption.strip() for caption in captions if caption.strip()] or [],
    }


def question_record(
    key: str, images: Sequence[ImageFile], question: str, answers: Sequence[str], **fields: Any
) -> Mapping[str, Any]:
    """What a `QuestionTask` reads, with the answer of most people."""
    answer = fields.pop("answer", None) or (most_frequent(answers) if answers else "")
    return {
        "id": key,
        "images": list(images),
        "question": question.strip(),
        "answer": answer,
        "answers": list(answers),
        **fields,
    }
