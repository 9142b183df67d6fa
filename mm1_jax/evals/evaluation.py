"""Evaluates one model on benchmarks: writes each answer to a file as it comes, then the scores.

    <folder>/<benchmark>/<shots>_shot.jsonl               answers, one line each, as they come
    <folder>/<benchmark>/<shots>_shot_predictions.json    all answers, in the benchmark's layout
    <folder>/<benchmark>/<shots>_shot_review1.jsonl       or grades.json: grades by a judge
    <folder>/<benchmark>/<shots>_shot_cases.html          the best and the worst answers

A stopped evaluation resumes with the tasks that have no answer yet. Several processes can evaluate
one model together; the first of them writes the files.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mm1_jax.evals.answer_log import AnswerLog
from mm1_jax.evals.asking import compare_options
from mm1_jax.evals.benchmark import Benchmark, Verdict
from mm1_jax.evals.cases import cases_page
from mm1_jax.evals.judge import Judge
from mm1_jax.models.mm1 import MM1
from mm1_jax.multihost import distributed
from mm1_jax.storage import write_whole
from mm1_jax.stored_config import flat_fields

# Config fields of a benchmark that do not affect the model's answer to a task.
_FIELDS_WITHOUT_EFFECT = (
    *("run", "shots", "blank_shots", "num_examples", "num_few_shot_examples", "num_samples"),
    *("batch_size", "headline", "headline_scale", "data_dir", "allow_missing_images"),
    *("scoring", "predictions", "grading", "num_judge_runs", "system_message"),
    # The fingerprint of the records covers the format of conversations.
    "chat_format",
    # These read and choose the records; the fingerprint covers their result.
    *("read", "row", "patterns", "publisher", "records"),
    # The documents imply the first; `_ASKED_WITH` records the others.
    *("shows_images", "asking", "exemplars_of"),
)
# The header entry that names the functions that ask. Logs of earlier code lack it.
_ASKED_WITH = "asked_with"
# The number of best answers, and of worst answers, on the page of cases.
_NUM_CASES = 12
_LOW, _HIGH = "low95", "high95"


@runtime_checkable
class Bar(Protocol):
    """A progress bar that is updated once per answer."""

    def update(self) -> object: ...

    def close(self) -> object: ...


# (title, number of tasks, number of tasks that already have answers) -> progress bar
MakeBar = Callable[[str, int, int], Bar]


@dataclass(frozen=True)
class Scores:
    """Scores of one benchmark at one number of shots.

    Attributes:
        metrics: Values by metric name.
        intervals: 95% intervals of some of the metrics.
        num_tasks: The number of records that were asked.
        num_records: The number of records that could be asked.
        headline: The metric that tables show, in the unit of the table; None if it is missing.
        headline_name: The name of that metric.
    """

    benchmark: str
    shots: int
    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    num_tasks: int = 0
    num_records: int = 0
    headline: float | None = None
    headline_name: str = ""
    headline_interval: tuple[float, float] | None = None

    def named(self) -> dict[str, float]:
        """Metrics by `benchmark/shots/metric`; intervals end in `metric_low95` and `_high95`."""
        values = dict(self.metrics)
        for name, (low, high) in self.intervals.items():
            values |= {f"{name}_{_LOW}": low, f"{name}_{_HIGH}": high}
        return {f"{self.benchmark}/{self.shots}/{name}": x for name, x in values.items()}


def evaluate(
    benchmark: Benchmark,
    model: MM1,
    shots: int,
    *,
    folder: Path,
    identity: Mapping[str, Any],
    make_bar: MakeBar,
    judge: Judge | None = None,
) -> Scores:
    """Asks the tasks that have no answer in `folder` yet, then scores all tasks.

    Args:
        identity: Facts that identify the model; a log with answers of another model is refused.
        judge: Grades the answers of benchmarks that need a judge. None leaves them unscored. Only
            the first process calls the judge and returns its scores.

    Raises:
        ValueError: The log in `folder` has another header, or pictures are missing.
    """
    cfg = benchmark.config
    own = folder / cfg.name
    header = {
        **identity,
        "shots": shots,
        "benchmark": _protocol(benchmark),
        _ASKED_WITH: {
            name: value
            for name, value in flat_fields(cfg).items()
            if name in ("asking", "exemplars_of")
        },
    }
    log = _log(own / f"{shots}_shot.jsonl", header, cfg.asking is compare_options)
    maker = benchmark.maker
    # The features are shared by all numbers of shots.
    about = {name: value for name, value in header.items() if name != "shots"}
    maker.prepare(model, shots, cache=own / "exemplar_features.npz", about=about)
    tasks = maker.tasks(shots)
    answered = sum(log.get(maker.key(place)) is not None for place in tasks.places)
    bar = make_bar(f"{cfg.name}, {shots} shots", len(tasks), answered)
    try:
        judgement = benchmark.run_shots(model, shots, log=log, progress=bar.update)
    finally:
        bar.close()
    verdicts = judgement.verdicts
    metrics = dict(judgement.metrics)
    if distributed.is_first():
        if cfg.predictions is not None:
            suffix, text = cfg.predictions(verdicts)
            write_whole(own / f"{shots}_shot_predictions{suffix}", text + "\n")
        best, worst = benchmark.cases(judgement, _NUM_CASES)
        page = cases_page(f"{cfg.name}, {shots} shots", best, worst)
        write_whole(own / f"{shots}_shot_cases.html", page)
        if cfg.grading is not None and judge is not None:
            metrics |= _graded(benchmark, verdicts, judge, own, shots, make_bar)
    name, scale = _headline(benchmark, metrics)
    intervals = benchmark.intervals(judgement)
    value, interval = metrics.get(name), intervals.get(name)
    return Scores(
        cfg.name,
        shots,
        metrics,
        intervals,
        num_tasks=len(tasks),
        num_records=maker.num_records,
        headline=None if value is None else scale * value,
        headline_name=name,
        headline_interval=None if interval is None else (scale * interval[0], scale * interval[1]),
    )


def _log(path: Path, header: Mapping[str, Any], has_options: bool) -> AnswerLog:
    """Opens the log of earlier answers. All processes read it, and the first one appends to it."""
    open_log = functools.partial(
        AnswerLog, path, header, has_options=has_options, may_lack=(_ASKED_WITH,)
    )
    with distributed.together():
        log = open_log() if distributed.is_first() else None
    with distributed.together():
        return open_log(read_only=True) if log is None else log


def _graded(
    benchmark: Benchmark,
    verdicts: Sequence[Verdict],
    judge: Judge,
    folder: Path,
    shots: int,
    make_bar: MakeBar,
) -> Mapping[str, float]:
    cfg = benchmark.config
    source: Any = benchmark.maker.queries.source
    bar = make_bar(f"{cfg.name}, judged", len(verdicts) * (cfg.num_judge_runs or 1), 0)
    try:
        grades = cfg.grading(verdicts, judge, cfg, source.file, bar.update)
    finally:
        bar.close()
    write_whole(folder / f"{shots}_shot_{grades.name}", grades.content)
    return grades.metrics


def _headline(benchmark: Benchmark, metrics: Mapping[str, float]) -> tuple[str, float]:
    cfg = benchmark.config
    default = "accuracy" if "accuracy" in metrics else "exact_match"
    return cfg.headline or default, 100.0 if cfg.headline_scale is None else cfg.headline_scale


def _protocol(benchmark: Benchmark) -> dict[str, Any]:
    """Everything that determines the prompts and where an answer ends."""
    lines = benchmark.config.debug_string().splitlines()
    fields = dict(line.split(": ", 1) for line in lines)
    kept = {
        path: value
        for path, value in fields.items()
        if not {part.split("[")[0] for part in path.split(".")} & {*_FIELDS_WITHOUT_EFFECT}
    }
    protocol = {"config": kept, "records": benchmark.fingerprint()}
    if (tiling := benchmark.tiling_fingerprint) is not None:
        protocol["tiling"] = tiling
    return protocol


def averages(
    scores: Sequence[Scores], names: Sequence[str], key: str = "average"
) -> dict[str, float]:
    """Averages the headlines of the benchmarks in `names` per number of shots (MM1, section 3.1).

    Returns the unweighted mean under `key/shots/score`, which mixes CIDEr and accuracies in the
    unit of the table, and the number of benchmarks in it under `key/shots/num_benchmarks`.
    """
    by_shots: dict[int, list[float]] = {}
    for one in scores:
        if one.benchmark in names and one.headline is not None:
            by_shots.setdefault(one.shots, []).append(one.headline)
    found = {}
    for shots, values in by_shots.items():
        found[f"{key}/{shots}/score"] = sum(values) / len(values)
        found[f"{key}/{shots}/num_benchmarks"] = float(len(values))
    return found
