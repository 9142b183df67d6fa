"""Yes-no questions: POPE and MME."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mm1_jax.evals.answers import TextAnswer
from mm1_jax.evals.predictions.entries import Entry, read_entries
from mm1_jax.evals.predictions.files import read_text
from mm1_jax.evals.predictions.questions import reply
from mm1_jax.evals.predictions.scorer import Metrics, Scorer, ScoringJob, prediction_files
from mm1_jax.evals.scoring.items import Item, scores, tally
from mm1_jax.evals.scoring.texts import mean
from mm1_jax.evals.scoring.yes_no import (
    MME_COGNITION,
    MME_PERCEPTION,
    POPE_COUNTS,
    POPE_SCORES,
    mme,
    mme_subtasks,
    pope,
)

_POPE_SPLITS = ("adversarial", "popular", "random")


def yes_or_no(entry: Entry, *names: str) -> str:
    """Returns a reference, "yes" or "no"."""
    text = entry.text(*names, expected="'yes' or 'no'")
    if text.lower() not in ("yes", "no"):
        raise entry.error(names, "'yes' or 'no'", text)
    return text.lower()


def _pope_items(path: Path, job: ScoringJob) -> list[Item]:
    items = []
    for prediction, reference in job.paired(path, "question_id"):
        # In a file that also holds the labels, the field `text` is the question.
        is_one = prediction is reference
        text = (
            prediction.text("prediction", "answer")
            if is_one
            else reply(prediction, reference, "answer")
        )
        items.append(Item({"answer": yes_or_no(reference, "label")}, TextAnswer(text)))
    return items


def _pope_metrics(items: Sequence[Item], job: ScoringJob) -> Metrics:
    scored = pope(items)
    counts = {name: int(scored.columns[name].sum()) for name in POPE_COUNTS}
    return {"n": len(items), **counts, **scores(scored)}


def _mean_of_splits(scores: Mapping[str, Metrics]) -> dict[str, Metrics]:
    if not {*_POPE_SPLITS} <= {*scores}:
        return {}
    return {
        "mean": {
            name: mean([scores[split][name] for split in _POPE_SPLITS]) for name in POPE_SCORES
        }
    }


# One file per split; `mean` is over the three splits, if the files have their names.
POPE = Scorer(
    layout=(
        'records {"question_id", "label": "yes" or "no", "answer": the reply}; or the replies '
        'alone, {"answer" or "text"}, with annotations'
    ),
    annotations=(
        'the split of POPE: records {"question_id", "label"}, or in the order of the replies'
    ),
    read=_pope_items,
    metrics=_pope_metrics,
    joint=_mean_of_splits,
)


def _mme_files(folder: Path) -> list[Path]:
    texts = [folder / f"{name}.txt" for name in (*MME_PERCEPTION, *MME_COGNITION)]
    return prediction_files(folder) + [path for path in texts if path.exists()]


def _mme_metrics(entries: Sequence[Entry], job: ScoringJob) -> Metrics:
    """Scores a subtask; each image must have two different questions."""
    items: list[Item] = []
    numbers: dict[str, int] = {}
    questions: set[tuple[str, str]] = set()
    for entry in entries:
        text, answer = entry.text("prediction"), yes_or_no(entry, "answer")
        image = entry.key("image")
        numbers[image] = numbers.get(image, 0) + 1
        if entry.has("question"):
            question = (image, entry.text("question"))
            if question in questions:
                raise ValueError(
                    f"{entry.where}: repeats a question about image {image!r}; MME asks two "
                    "different ones about each image"
                )
            questions.add(question)
        fields = {"subtask": entry.text("category"), "image": image, "answer": answer}
        items.append(Item(fields | {"is_first": numbers[image] == 1}, TextAnswer(text)))
    for image, number in numbers.items():
        if number != 2:
            raise ValueError(
                f"{entries[0].where}: in this subtask, image {image!r} has {number} questions, but "
                "MME asks two about each image; give each file once, and whole"
            )
    columns = {name: tally(values) for name, values in mme(items).columns.items()}
    (found,) = mme_subtasks(columns).values()
    return {"n": len(items)} | {name: float(value[0]) for name, value in found.items()}


def _mme_halves(scores: Mapping[str, Metrics]) -> dict[str, Metrics]:
    halves = {"Perception": MME_PERCEPTION, "Cognition": MME_COGNITION}
    return {
        half: {"score": sum(scores[name]["score"] for name in names)}
        for half, names in halves.items()
        if {*names} <= {*scores}
    }


def _mme_entries(path: Path, job: ScoringJob) -> list[Entry]:
    text = read_text(path)
    if path.suffix != ".txt" or text.lstrip()[:1] in ("{", "["):
        return read_entries(path)
    entries = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        fields = line.rstrip("\r").split("\t")
        where = f"{path}, line {number}"
        if len(fields) != 4:
            raise ValueError(
                f"{where}: expected image, question, answer and reply separated by tabs, got "
                f"{len(fields)} fields; a reply must not contain tabs or newlines"
            )
        names = ("image", "question", "answer", "prediction")
        entries.append(
            Entry(dict(zip(names, fields, strict=True)) | {"category": path.stem}, where)
        )
    return entries


# Scores per subtask, and of each half if all of its subtasks are present.
MME = Scorer(
    layout=(
        'records {"category": the subtask, "image", "answer": "Yes" or "No", "prediction": the '
        "reply}; or the official SUBTASK.txt, lines of image, question, answer and reply separated "
        "by tabs; two questions per image"
    ),
    read=_mme_entries,
    metrics=_mme_metrics,
    files=_mme_files,
    group=lambda entry: entry.text("category"),
    joint=_mme_halves,
)
