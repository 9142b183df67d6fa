"""Yes-no questions: POPE and MME."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mm1_jax.evals.metrics.answers import mean
from mm1_jax.evals.metrics.yes_no import (
    MME_COGNITION,
    MME_PERCEPTION,
    mme_reply,
    mme_scores,
    pope_says_yes,
    pope_scores,
)
from mm1_jax.evals.predictions.base import Metrics, Scorer, ScoringJob
from mm1_jax.evals.predictions.files import read_text
from mm1_jax.evals.predictions.questions import reply
from mm1_jax.evals.predictions.records import Record, read_records

_POPE_SPLITS = ("adversarial", "popular", "random")


def yes_or_no(record: Record, *names: str) -> bool:
    """Whether a reference is yes."""
    text = record.text(*names, expected="'yes' or 'no'")
    if text.lower() not in ("yes", "no"):
        raise record.error(names, "'yes' or 'no'", text)
    return text.lower() == "yes"


class PopeScorer(Scorer):
    """POPE, a file a split; `mean` over the three splits where they are called by their names."""

    layout = (
        'records {"question_id", "label": "yes" or "no", "answer": the reply}; or the replies '
        'alone, {"answer" or "text"}, with annotations'
    )
    annotations = (
        'the split of POPE: records {"question_id", "label"}, or in the order of the replies'
    )

    def score_file(self, path: Path, job: ScoringJob) -> Metrics:
        pairs = job.paired(path, "question_id")
        # In a file that holds the labels too, the text is the question.
        replies = [
            said.text("prediction", "answer") if said is asked else reply(said, asked, "answer")
            for said, asked in pairs
        ]
        return pope_scores(
            [pope_says_yes(reply) for reply in replies],
            [yes_or_no(asked, "label") for _, asked in pairs],
        )

    def score_together(self, scores: Mapping[str, Metrics]) -> dict[str, Metrics]:
        if not set(_POPE_SPLITS) <= set(scores):
            return {}
        names = ("accuracy", "precision", "recall", "f1", "yes_ratio")
        return {
            "mean": {name: mean([scores[split][name] for split in _POPE_SPLITS]) for name in names}
        }


class MmeScorer(Scorer):
    """MME, by subtask, and its two halves where all their subtasks are there."""

    layout = (
        'records {"category": the subtask, "image", "answer": "Yes" or "No", "prediction": the '
        "reply}; or the official SUBTASK.txt, lines of image, question, answer and reply with tabs "
        "between them; two questions an image"
    )

    def files(self, folder: Path) -> list[Path]:
        texts = [folder / f"{name}.txt" for name in (*MME_PERCEPTION, *MME_COGNITION)]
        return super().files(folder) + [path for path in texts if path.exists()]

    def score(self, paths: Sequence[Path], job: ScoringJob) -> dict[str, Metrics]:
        by_subtask: dict[str, list[Record]] = {}
        for path in paths:
            for record in _mme_records(path):
                by_subtask.setdefault(record.text("category"), []).append(record)
        scores = {name: self._subtask(records) for name, records in by_subtask.items()}
        return scores | self.score_together(scores)

    def score_file(self, path: Path, job: ScoringJob) -> Metrics:
        return self.score([path], job)

    def score_together(self, scores: Mapping[str, Metrics]) -> dict[str, Metrics]:
        halves = {"Perception": MME_PERCEPTION, "Cognition": MME_COGNITION}
        return {
            half: {"score": sum(scores[name]["score"] for name in names)}
            for half, names in halves.items()
            if set(names) <= set(scores)
        }

    def _subtask(self, records: Sequence[Record]) -> Metrics:
        correct: dict[str, list[bool]] = {}
        questions: set[tuple[str, str]] = set()
        for record in records:
            said = mme_reply(record.text("prediction"))
            right = said == ("yes" if yes_or_no(record, "answer") else "no")
            image = record.key("image")
            correct.setdefault(image, []).append(right)
            if record.has("question"):
                question = (image, record.text("question"))
                if question in questions:
                    raise ValueError(
                        f"{record.where}: the question about image {image!r} was there before; MME "
                        "asks two different ones about each"
                    )
                questions.add(question)
        for image, verdicts in correct.items():
            if len(verdicts) != 2:
                raise ValueError(
                    f"{records[0].where}: of this subtask, image {image!r} has {len(verdicts)} "
                    "questions, and MME asks two about each; give each file once, and whole"
                )
        return {"n": len(records), **mme_scores(correct)}


def _mme_records(path: Path) -> list[Record]:
    text = read_text(path)
    if path.suffix != ".txt" or text.lstrip()[:1] in ("{", "["):
        return read_records(path)
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        fields = line.rstrip("\r").split("\t")
        where = f"{path}, line {number}"
        if len(fields) != 4:
            raise ValueError(
                f"{where}: expected image, question, answer and reply with tabs between them, got "
                f"{len(fields)} fields; a reply must not have tabs or line ends"
            )
        names = ("image", "question", "answer", "prediction")
        records.append(
            Record(dict(zip(names, fields, strict=True)) | {"category": path.stem}, where)
        )
    return records
