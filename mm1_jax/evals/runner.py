"""Evaluates the model of a run on benchmarks, for `python -m mm1_jax evaluate --checkpoint`.

A stopped evaluation resumes with the tasks that have no answer yet. Several processes can evaluate
one model together; the first of them writes the files.
"""

import hashlib
import json
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mm1_jax.checkpoints.checkpoint_folder import checkpoints_of
from mm1_jax.checkpoints.trained_model import load_model, newest_step, placement_of
from mm1_jax.config import close_names, fill
from mm1_jax.evals import chat_table
from mm1_jax.evals.benchmark import Benchmark
from mm1_jax.evals.benchmarks.registry import (
    BENCHMARKS,
    GROUPS,
    PRETRAINING,
    SMALL_WORLD,
    SMALL_WORLD_TEXT,
    TABLE4,
    TEXT_CORE,
)
from mm1_jax.evals.evaluation import Bar, averages, evaluate
from mm1_jax.evals.evaluator import PromptInput
from mm1_jax.evals.exemplars import SimilarExemplars
from mm1_jax.evals.judge import Judge
from mm1_jax.evals.prompts import ChatTask
from mm1_jax.evals.reasoning import Reasoning
from mm1_jax.evals.report import markdown
from mm1_jax.launch.run_folder import load_experiment
from mm1_jax.multihost import distributed
from mm1_jax.multihost.agreement import agree, config_facts
from mm1_jax.overrides import apply_overrides
from mm1_jax.parallel.sharding import use_mesh
from mm1_jax.storage import write_whole
from mm1_jax.stored_config import flat_fields

# Tokens of an answer with reasoning.
_REASONING_TOKENS = 512


def ask(flags: Namespace) -> dict[str, float]:
    """Evaluates the model of a run. Returns all scores by key.

    Raises:
        ValueError: A mistake that the user can fix, such as a wrong flag or a missing file.
    """
    folder = flags.checkpoint
    # If one process fails here, all must fail: the others would wait for it forever.
    with distributed.together():
        if not folder.is_dir():
            raise ValueError(f"--checkpoint={folder}: no such folder; give a run's output folder")
        cfg = load_experiment(folder)
        # All steps of the run share one cache of the judge's replies.
        judge = _judge_of(flags, (flags.output or folder / "evaluation") / "judge")
        benchmarks = _built(flags, cfg)
        step = newest_step(folder, cfg) if flags.step is None else flags.step
        identity = {
            "step": step,
            "model": hashlib.sha256(cfg.model.debug_string().encode()).hexdigest(),
        }
        manifest = checkpoints_of(folder) / str(step) / "manifest.json"
        if manifest.exists():
            # Its checksums distinguish these parameters from those of another training run.
            identity["parameters"] = hashlib.sha256(manifest.read_bytes()).hexdigest()
    agree(
        {f"the checkpoint's {name}": value for name, value in identity.items()}
        | {f"data of {name}": each.fingerprint() for name, each in benchmarks.items()}
        | {
            f"{name}.{path}": value
            for name, each in benchmarks.items()
            for path, value in config_facts(flat_fields(each.config)).items()
        }
    )
    mesh = flags.mesh or (None if distributed.process_count() == 1 else "run")
    placement = None if mesh is None else placement_of(cfg, mesh)
    model, _ = load_model(folder, cfg, step, placement=placement)
    output = flags.output or folder / "evaluation" / str(step)
    output.mkdir(parents=True, exist_ok=True)
    scores, protocol, values = [], {}, {}
    for name, benchmark in benchmarks.items():
        protocol[name] = benchmark.describe()
        for number in benchmark.config.shots:
            with use_mesh(placement and placement.mesh, placement and placement.rules):
                scores.append(
                    evaluate(
                        benchmark,
                        model,
                        number,
                        folder=output,
                        identity=identity,
                        make_bar=_bar,
                        judge=judge,
                    )
                )
            if not distributed.is_first():
                continue
            # Rewritten after each evaluation, so that partial results can be read.
            report = markdown(
                scores,
                title=f"{folder.resolve().name}, step {step}",
                pretraining=list(PRETRAINING),
                chat=list(TABLE4),
                text_core=list(TEXT_CORE),
                small_world=list(SMALL_WORLD),
                small_world_text=list(SMALL_WORLD_TEXT),
                protocol=protocol,
            )
            values = {key: x for one in scores for key, x in one.named().items()}
            values |= {
                f"{one.benchmark}/{one.shots}/{chat_table.RECORDS_LEFT_OUT}": left_out
                for one in scores
                if (left_out := float(one.num_records - one.num_tasks))
            }
            row = chat_table.row_of(folder.resolve().name, values)
            if row.values:
                rows = [*chat_table.published_rows(), row]
                report += f"\n## Table 4\n\n{chat_table.markdown(rows)}"
                write_whole(output / "chat_table.csv", chat_table.csv_text(rows))
            write_whole(output / "report.md", report)
            values |= averages(scores, list(PRETRAINING))
            values |= averages(scores, list(TEXT_CORE), "text_core")
            values |= averages(scores, list(SMALL_WORLD), "small_world")
            values |= averages(scores, list(SMALL_WORLD_TEXT), "small_world_text")
            write_whole(output / "scores.json", json.dumps(values, indent=1) + "\n")
    if distributed.is_first():
        print(report)
        print(f"{output / 'report.md'}", file=sys.stderr)
    return values


def _built(flags: Namespace, experiment: Any) -> dict[str, Benchmark]:
    """Builds all chosen benchmarks before the first one runs, so that mistakes surface early."""
    prompt_input = PromptInput.of(experiment.input)
    benchmarks = {
        name: cfg.instantiate(input=prompt_input)
        for name, cfg in _chosen(flags, experiment).items()
    }
    for benchmark in benchmarks.values():
        for number in benchmark.config.shots:
            # Exemplars similar to the query can be chosen only once the model is loaded.
            if benchmark.config.exemplars is None or not number:
                benchmark.check(benchmark.tasks(number))
    return benchmarks


def _chosen(flags: Namespace, experiment: Any) -> dict[str, Benchmark.Config]:
    """Returns the configs of the chosen benchmarks by name. Raises ValueError for invalid flags."""
    # A benchmark that the run itself evaluates keeps the run's config.
    own = {cfg.name: cfg for cfg in experiment.evals.values() if issubclass(cfg.klass, Benchmark)}
    known = {name: make() for name, make in BENCHMARKS.items()} | own
    names = [
        name for word in flags.benchmarks.split(",") if word for name in GROUPS.get(word, (word,))
    ]
    if not names:
        raise ValueError(
            f"--benchmarks={flags.benchmarks}: names no benchmark; known: {', '.join(known)}"
        )
    configs = {}
    for name in dict.fromkeys(names):
        if name not in known:
            close = close_names(name, [*known, *GROUPS])
            hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
            raise ValueError(f"--benchmarks={flags.benchmarks}: unknown benchmark {name!r}; {hint}")
        cfg = known[name].clone(blank_shots=())
        fill(cfg, "chat_format", experiment.input.chat_format)
        if "data_dir" in cfg.corpus.source and cfg.corpus.source.data_dir is None:
            cfg.corpus.source.data_dir = str(flags.benchmarks_dir)
        if flags.exemplars == "similar":
            cfg.exemplars = SimilarExemplars.default_config()
        if flags.reasoning:
            _set_reasoning(cfg)
        if flags.tiled_exemplars is not None:
            cfg.num_tiled_exemplars = flags.tiled_exemplars
        if flags.shots is not None:
            cfg.shots = _shots(flags.shots)
        if flags.limit is not None:
            cfg.set(num_examples=flags.limit, num_few_shot_examples=flags.limit)
        if flags.batch_size is not None:
            cfg.batch_size = flags.batch_size
        configs[name] = cfg
    for given in flags.set:
        path, equals, value = given.partition("=")
        name, _, field = path.partition(".")
        if not equals or name not in configs or not field:
            raise ValueError(
                f"--set={given}: expected NAME.FIELD=VALUE, NAME one of {', '.join(configs)}"
            )
        configs[name] = apply_overrides(configs[name], {field: value}, types_from=configs[name])
    return configs


def _set_reasoning(cfg: Benchmark.Config) -> None:
    """Makes a benchmark ask for reasoning before the answer."""
    task: Any = cfg.corpus.to_document
    if not isinstance(task, ChatTask.Config) or cfg.grading is not None:
        raise ValueError(
            f"--reasoning: {cfg.name} asks no question of a chat model with a short answer; name "
            "benchmarks such as scienceqa, mmmu and mathvista"
        )
    task.reasoning = Reasoning.default_config()
    # Reasoning may have several lines.
    cfg.set(
        max_new_tokens=_REASONING_TOKENS,
        stop_strings=tuple(stop for stop in cfg.stop_strings if stop != "\n"),
    )


def _shots(text: str) -> tuple[int, ...]:
    """Parses the value of --shots: `_shots("0,4") == (0, 4)`."""
    numbers = [word.strip() for word in text.split(",")]
    if not all(number.isdecimal() for number in numbers):
        raise ValueError(f"--shots={text}: expected numbers of exemplars, such as 0,4,8")
    return tuple(dict.fromkeys(map(int, numbers)))


def _judge_of(flags: Namespace, cache_dir: Path) -> Judge | None:
    """Returns the judge at --judge_url, or None without it. Raises ValueError for invalid flags."""
    if not flags.judge_url:
        return None
    return Judge(
        flags.judge_url,
        flags.judge_model,
        cache_dir=cache_dir,
        allow_http=flags.judge_allow_http,
    )


class _Lines:
    """A progress bar for output that is not a terminal: one line every `EVERY_SECONDS`."""

    EVERY_SECONDS = 30.0

    def __init__(self, name: str, total: int, done: int):
        self._name, self._total, self._done = name, total, done
        self._first, self._start = done, time.monotonic()
        self._last = self._start

    def update(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._last >= self.EVERY_SECONDS:
            self._last = now
            pace = (now - self._start) / (self._done - self._first)
            left = pace * (self._total - self._done)
            print(f"{self._name}: {self._done}/{self._total}, {left:.0f} s remain", file=sys.stderr)

    def close(self) -> None:
        if self._done > self._first:
            seconds = time.monotonic() - self._start
            number = self._done - self._first
            print(f"{self._name}: {number} answers in {seconds:.1f} s", file=sys.stderr)


class _Silent:
    """A progress bar that shows nothing."""

    def update(self) -> None: ...

    def close(self) -> None: ...


def _bar(name: str, total: int, done: int) -> Bar:
    """Returns a tqdm bar on a terminal, else lines. Only the first process shows progress."""
    if not distributed.is_first():
        return _Silent()
    if not sys.stderr.isatty():
        return _Lines(name, total, done)
    return tqdm(total=total, initial=done, desc=name, unit="task", dynamic_ncols=True)
