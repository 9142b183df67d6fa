"""Benchmarks asked of one model, answer by answer into files, and the scores of all.

    <folder>/<benchmark>/<shots>_shot.jsonl               answers as they come
    <folder>/<benchmark>/<shots>_shot_predictions.json    in the benchmark's layout, when all are in
    <folder>/<benchmark>/<shots>_shot_review1.jsonl       or grades.json: what a judge said to them
    <folder>/<benchmark>/<shots>_shot_cases.html          the best and the worst answers, to look at

An evaluation that was stopped resumes with the first task that has no answer. Of several processes,
which ask the model together, the first writes.
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

# Fields of a benchmark that do not decide what the model says to a task.
_NOT_OF_THE_ANSWERS = (
    *("run", "shots", "blank_shots", "num_examples", "num_few_shot_examples", "num_samples"),
    *("batch_size", "headline", "headline_scale", "data_dir", "allow_missing_images"),
    *("scoring", "predictions", "grading", "num_judge_runs", "system_message"),
    # Records are read and chosen by these; their fingerprint tells what came of it.
    *("read", "row", "patterns", "publisher", "records"),
    # The tasks show it, or it is in `_ASKED_WITH`.
    *("shows_images", "asking", "exemplars_of"),
)
# The entry of a log's header that logs of earlier code lack: the functions that ask.
_ASKED_WITH = "asked_with"
# The number of best and of worst answers, for people to look at.
_NUM_CASES = 12
_LOW, _HIGH = "low95", "high95"


@runtime_checkable
class Bar(Protocol):
    """A progress bar that is told of each answer."""

    def update(self) -> object: ...

    def close(self) -> object: ...


# The name of what is asked, how many tasks there are, and how many have their answers -> a bar.
MakeBar = Callable[[str, int, int], Bar]


@dataclass(frozen=True)
class Scores:
    """One benchmark with so many exemplars.

    Attributes:
        metrics: By their own names.
        intervals: 95% intervals of some of them.
        num_tasks: How many records were asked, and `num_records` there are.
        headline: The metric that tables show, in their unit; None where there is no reference.
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
        """Under the keys `benchmark/shots/metric`, intervals as `metric_low95` and `_high95`."""
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
    """Asks what has no answer in `folder` yet, and scores all.

    Args:
        identity: Tells the model from others; answers of another one are refused.
        judge: Grades the answers of benchmarks that have a judge; None: they are not scored. Only
            the first process asks it, and has its scores.

    Raises:
        ValueError: The answers there were given otherwise, or pictures are not there.
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
    # The same for all numbers of exemplars.
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
    """The answers of before, which all processes read, of a file that the first one adds to."""
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
    cfg, source = benchmark.config, benchmark.maker.queries.source
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
    """All that decides the prompts of a task, and where answers end."""
    lines = benchmark.config.debug_string().splitlines()
    fields = dict(line.split(": ", 1) for line in lines)
    kept = {
        path: value
        for path, value in fields.items()
        if not {part.split("[")[0] for part in path.split(".")} & {*_NOT_OF_THE_ANSWERS}
    }
    return {"config": kept, "records": benchmark.fingerprint()}


def averages(
    scores: Sequence[Scores], names: Sequence[str], key: str = "average"
) -> dict[str, float]:
    """Under `key/shots/..`, the unweighted mean of what a table shows (MM1, section 3.1).

    CIDEr and accuracies, in the unit of the table, are in one mean; `num_benchmarks` says of how
    many it is. Benchmarks that are not among `names` are not in it.
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
