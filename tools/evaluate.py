"""Asks a trained model benchmarks, or scores what any model answered, as official code does.

python tools/evaluate.py --checkpoint=runs/mm1_tiny --benchmarks=digits_vqa --json=scores.json
python tools/evaluate.py --score_only --benchmarks=pope --predictions=FILE --json=scores.json
"""

if __name__ == "__main__":
    from mm1_jax.command import end_on_signals

    # Before the imports, which take seconds.
    end_on_signals()

import argparse
import io
import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mm1_jax.command import command
from mm1_jax.flags import local_path, whole
from mm1_jax.launch.processes import add_cluster_options, chosen_cluster, join, of_several

RESUMES = "the same command resumes"
# Options of one of several processes that need not be those of the others: itself and its folders.
MAY_DIFFER = (
    *("process_id", "initialization_timeout", "heartbeat_timeout", "json"),
    *("checkpoint", "benchmarks_dir", "output"),
)
ALL = "all"
# Benchmarks that stand for several: of MM1, tables 3 and 4 and TextCore; those that need no files.
GROUPS = ("pretraining", "chat", "judged", "text_core", "embedded")

EPILOG = """\
with --checkpoint:
  Prompts, exemplars, stop strings and metrics are the paper's; --list has the files that each
  benchmark is read from, and docs/evaluation.md the protocol. Any field of a benchmark is set by
  --set=NAME.FIELD=VALUE. Answers are kept as they come: a stopped command, given again, goes on.
  In --output are the answers, files of predictions, report.md and scores.json, whose keys are
  NAME/SHOTS/METRIC.

  A model that takes the devices of several hosts is asked by one command on each of them, as it
  was trained; they find each other as processes of a launch do, and see the same folders.

predictions and annotations, with --score_only:
  A path is a file, or a folder: then the files of it that are in the layout of the benchmark, or of
  its subfolder called NAME where there is one. For several benchmarks give one folder with such
  subfolders, or the flag once for each, as NAME=PATH. --list shows the layouts.

  References stand in the predictions themselves or in a file of their own, --annotations.

scores:
  Under the keys NAME/FILE, where FILE is a prediction file without its suffix (for MME, a subtask).
  The rules of each number, and where they come from: docs/evaluation.md.

examples:
  python tools/evaluate.py --list
  python tools/evaluate.py --checkpoint=runs/mm1_tiny --benchmarks=embedded --shots=0,4 --limit=100
  python tools/evaluate.py --checkpoint=runs/mm1_3b --benchmarks=pretraining --shots=0,4,8,16 \\
      --benchmarks_dir=benchmarks --json=scores.json
  python tools/evaluate.py --checkpoint=runs/mm1_3b --benchmarks=vqav2 \\
      --set=vqav2.corpus.source.query_split=test-dev2015
  python tools/evaluate.py --score_only --benchmarks=pope --predictions=pope/adversarial.jsonl
  python tools/evaluate.py --score_only --benchmarks=mme --predictions=mme --json=scores.json
  python tools/evaluate.py --score_only --benchmarks=pope,textvqa --predictions=answers
  python tools/evaluate.py --score_only --benchmarks=vqav2,gqa --json=scores.json \\
      --predictions=vqav2=vqa.json --annotations=vqav2=v2_mscoco_val2014_annotations.json \\
      --predictions=gqa=gqa.json --annotations=gqa=testdev_balanced_questions.json
  python tools/evaluate.py --score_only --benchmarks=caption --caption_metrics=METEOR,SPICE \\
      --predictions=captions_val2014_fakecap_results.json \\
      --annotations=annotations/captions_val2014.json

exit codes:
  0    scored
  2    the command or a file must be changed; the message says how
  130  stopped by Ctrl-C (143: by SIGTERM); the same command resumes
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/evaluate.py",
        description="Asks a trained model benchmarks, or scores what any model answered.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--list", action="store_true", help="describe the benchmarks and their layouts, and end"
    )
    parser.add_argument(
        "--score_only", action="store_true", help="score files of predictions; no model is run"
    )
    parser.add_argument(
        "--benchmarks",
        default="",
        metavar="NAME[,NAME]",
        help=f"names of --list; with --checkpoint {', '.join(GROUPS)} too; with --score_only "
        f"{ALL}: those that have a subfolder in --predictions",
    )
    parser.add_argument(
        "--checkpoint", type=local_path, metavar="FOLDER", help="a run's output folder, to be asked"
    )
    parser.add_argument(
        "--step", type=whole(0), help="which of its checkpoints; default: the newest"
    )
    parser.add_argument(
        "--mesh",
        metavar="AXIS=N[,AXIS=N]",
        help="how devices share the work, such as data=2,model=4; run: as in training; default: "
        "one device, and run with several processes",
    )
    parser.add_argument(
        "--shots",
        metavar="K[,K]",
        help="numbers of exemplars; default: 0,4,8, and 0 for chat and text benchmarks",
    )
    parser.add_argument(
        "--exemplars",
        choices=("random", "similar"),
        default="random",
        help="any, or those whose pictures the model's vision encoder finds most like the query's "
        "(RICES); default: %(default)s",
    )
    parser.add_argument(
        "--judge_url",
        default="",
        metavar="URL",
        help="an endpoint as OpenAI's, https://HOST/v1, to grade llava_bench and mmvet; the key "
        "comes from the environment variable OPENAI_API_KEY",
    )
    parser.add_argument(
        "--judge_model", default="", metavar="NAME", help="what the endpoint calls the judge"
    )
    parser.add_argument(
        "--judge_allow_http",
        action="store_true",
        help="speak to a --judge_url of another machine without TLS",
    )
    parser.add_argument(
        "--benchmarks_dir",
        type=local_path,
        default=Path("benchmarks"),
        metavar="DIR",
        help="the folder with a folder of each benchmark; default: %(default)s",
    )
    parser.add_argument(
        "--limit", type=whole(), metavar="N", help="ask a random N of the records, always the same"
    )
    parser.add_argument("--batch_size", type=whole(), metavar="N", help="prompts at once")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME.FIELD=VALUE",
        help="a field of a benchmark; may be given several times",
    )
    parser.add_argument(
        "--output",
        type=local_path,
        metavar="DIR",
        help="for answers and report; default: evaluation/STEP in the run's folder",
    )
    parser.add_argument(
        "--predictions",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="a file or folder; may be given several times, with the name of the benchmark",
    )
    parser.add_argument(
        "--annotations",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="the references, where the predictions do not hold them",
    )
    parser.add_argument(
        "--caption_metrics",
        default="",
        metavar="NAME[,NAME]",
        help="METEOR, SPICE: of captions as well; they need Java and .[caption-metrics]",
    )
    parser.add_argument(
        "--json", type=local_path, metavar="FILE", help="write the scores there as well"
    )
    add_cluster_options(parser)
    flags = parser.parse_args(arguments)
    if flags.list:
        return flags
    if flags.score_only == (flags.checkpoint is not None):
        parser.error(
            "give --checkpoint=FOLDER to ask a model, or --score_only to score files of predictions"
        )
    if flags.checkpoint is not None:
        if not flags.benchmarks:
            parser.error("--benchmarks: needed here; --help has examples")
        return flags
    if missing := [
        f"--{name}" for name in ("benchmarks", "predictions") if not getattr(flags, name)
    ]:
        parser.error(f"{', '.join(missing)}: needed here; --help has examples")
    return flags


def describe() -> str:
    """The benchmarks and the layouts of their files, for people to read."""
    from mm1_jax.evals.benchmarks.registry import BENCHMARKS
    from mm1_jax.evals.predictions.registry import SCORERS

    asked = ["asked of a model, with --checkpoint", ""]
    for name, benchmark in BENCHMARKS.items():
        module = sys.modules[benchmark.__module__]
        asked += [
            f"{name}: {line}" if i == 0 else f"  {line}"
            for i, line in enumerate((module.__doc__ or "").strip().splitlines())
        ]
    names_of: dict[str, list[str]] = {}
    for name, scorer in SCORERS.items():
        lines = [f"  predictions  {scorer.layout}"]
        if scorer.annotations:
            lines.append(f"  annotations  {scorer.annotations}")
        names_of.setdefault("\n".join(lines), []).append(name)
    scored = [f"{', '.join(names)}\n{description}" for description, names in names_of.items()]
    return "\n".join([*asked, "", "scored from files, with --score_only", "", *scored])


def by_benchmark(paths: Sequence[str], names: Sequence[str], flag: str) -> dict[str, Path]:
    """The path of each benchmark: its own, NAME=PATH, or the one that has no name."""
    found: dict[str, Path] = {}
    for given in paths:
        name, equals, path = given.partition("=")
        if equals and name in names:
            keys = [name]
        elif equals and "/" not in name and not Path(given).exists():
            raise ValueError(
                f"{flag}={given}: {name!r} is not among --benchmarks={','.join(names)}"
            )
        else:
            keys, path = list(names), given
        for key in keys:
            if key in found:
                raise ValueError(
                    f"{flag}={given}: {key} has {found[key]} already; give {flag}=NAME=PATH once "
                    "for each benchmark"
                )
            found[key] = Path(path)
    return found


def benchmarks(flags: argparse.Namespace) -> list[str]:
    """The names of --benchmarks. Raises ValueError where there is no such benchmark."""
    from mm1_jax.config import close_names
    from mm1_jax.evals.predictions.registry import SCORERS

    if flags.benchmarks == ALL:
        names = [
            name for name in SCORERS if any(Path(path, name).is_dir() for path in flags.predictions)
        ]
        if not names:
            raise ValueError(
                f"--predictions={','.join(flags.predictions)}: no subfolder is called as a "
                f"benchmark; for --benchmarks={ALL} give a folder with some of {', '.join(SCORERS)}"
            )
        return names
    names = [name for name in flags.benchmarks.split(",") if name]
    for name in names:
        if name not in SCORERS:
            close = close_names(name, SCORERS)
            hint = (
                f"did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(SCORERS)}."
            )
            raise ValueError(f"--benchmarks={flags.benchmarks}: there is no {name!r}; {hint}")
    return list(dict.fromkeys(names))


def files(name: str, path: Path, num_benchmarks: int) -> list[Path]:
    """The prediction files of a benchmark under a path."""
    from mm1_jax.evals.predictions.files import SUFFIXES
    from mm1_jax.evals.predictions.registry import SCORERS

    if not path.exists():
        raise ValueError(f"--predictions={path}: no such file or folder")
    subfolder = path / name
    if num_benchmarks > 1 and not subfolder.is_dir():
        raise ValueError(
            f"--predictions={path}: it serves {num_benchmarks} benchmarks, and has no subfolder "
            f"{name!r}; give --predictions={name}=PATH"
        )
    if path.is_file():
        return [path]
    folder = subfolder if subfolder.is_dir() else path
    if not (found := SCORERS[name].files(folder)):
        raise ValueError(
            f"{folder}: no file of {name}; expected {', '.join(SUFFIXES)}: {SCORERS[name].layout}"
        )
    return found


def score_predictions(flags: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The scores of all benchmarks, and notes on them. Raises ValueError on what can be mended."""
    from mm1_jax.evals.metrics.java_captions import JAVA_METRICS
    from mm1_jax.evals.predictions.base import ScoringJob
    from mm1_jax.evals.predictions.registry import SCORERS

    java_metrics = [name for name in flags.caption_metrics.split(",") if name]
    if unknown := [name for name in java_metrics if name not in JAVA_METRICS]:
        raise ValueError(
            f"--caption_metrics={flags.caption_metrics}: there is no {unknown[0]!r}; expected some "
            f"of {', '.join(JAVA_METRICS)}"
        )
    names = benchmarks(flags)
    predictions = by_benchmark(flags.predictions, names, "--predictions")
    annotations = by_benchmark(flags.annotations, names, "--annotations")
    if lacking := [name for name in names if name not in predictions]:
        raise ValueError(
            f"--predictions: none for {lacking[0]}; give --predictions={lacking[0]}=PATH"
        )
    if len(set(annotations.values())) < len(annotations):
        raise ValueError("--annotations: for several benchmarks, give --annotations=NAME=FILE")
    scores: dict[str, Any] = {}
    notes: list[str] = []
    for name in names:
        path = predictions[name]
        # A path without a name serves all; one with a name is meant for that benchmark.
        served = len(names) if str(path) in map(str, map(Path, flags.predictions)) else 1
        job = ScoringJob(annotations.get(name), java_metrics)
        paths = files(name, path, served)
        for key, metrics in SCORERS[name].score(paths, job).items():
            scores[f"{name}/{key}"] = metrics
        notes += job.notes
    return scores, notes


def chosen(flags: argparse.Namespace, experiment: Any) -> dict[str, Any]:
    """The configs of the benchmarks to ask. Raises ValueError where a flag cannot be."""
    from mm1_jax.config import close_names
    from mm1_jax.evals.benchmarks.base import Benchmark
    from mm1_jax.evals.benchmarks.registry import (
        BENCHMARKS,
        CHAT,
        EMBEDDED,
        JUDGED,
        PRETRAINING,
        TEXT_CORE,
    )
    from mm1_jax.evals.exemplars import SimilarExemplars
    from mm1_jax.overrides import apply_overrides

    groups = dict(zip(GROUPS, (PRETRAINING, CHAT, JUDGED, TEXT_CORE, EMBEDDED), strict=True))
    # As the run itself evaluates them.
    own = {cfg.name: cfg for cfg in experiment.evals.values() if issubclass(cfg.klass, Benchmark)}
    known = {name: cls.default_config() for name, cls in BENCHMARKS.items()} | own
    names = [
        name for word in flags.benchmarks.split(",") if word for name in groups.get(word, (word,))
    ]
    if not names:
        raise ValueError(f"--benchmarks={flags.benchmarks}: no name; known: {', '.join(known)}")
    configs = {}
    for name in dict.fromkeys(names):
        if name not in known:
            close = close_names(name, [*known, *groups])
            hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
            raise ValueError(f"--benchmarks={flags.benchmarks}: there is no {name!r}; {hint}")
        cfg = known[name].clone(blank_shots=())
        if "data_dir" in cfg.corpus.source and cfg.corpus.source.data_dir is None:
            cfg.corpus.source.data_dir = str(flags.benchmarks_dir)
        if flags.exemplars == "similar":
            cfg.exemplars = SimilarExemplars.default_config()
        if flags.shots is not None:
            cfg.shots = shots(flags.shots)
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


def shots(text: str) -> tuple[int, ...]:
    """`shots("0,4") == (0, 4)`"""
    numbers = [word.strip() for word in text.split(",")]
    if not all(number.isdecimal() for number in numbers):
        raise ValueError(f"--shots={text}: expected numbers of exemplars, such as 0,4,8")
    return tuple(dict.fromkeys(map(int, numbers)))


class Lines:
    """A bar for files: a line now and then."""

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


class Silent:
    """No bar."""

    def update(self) -> None: ...

    def close(self) -> None: ...


def bar(name: str, total: int, done: int) -> Any:
    """Of tqdm on a terminal, else lines; of several processes, the first one has it."""
    from mm1_jax.multihost import distributed

    if not distributed.is_first():
        return Silent()
    if not sys.stderr.isatty():
        return Lines(name, total, done)
    from tqdm import tqdm

    return tqdm(total=total, initial=done, desc=name, unit="task", dynamic_ncols=True)


def built(flags: argparse.Namespace, experiment: Any) -> dict[str, Any]:
    """The benchmarks to ask, all built before anything is asked: mistakes come out at once."""
    from mm1_jax.evals.evaluator import PromptInput

    prompt_input = PromptInput.of(experiment.input)
    benchmarks = {
        name: cfg.instantiate(input=prompt_input) for name, cfg in chosen(flags, experiment).items()
    }
    for benchmark in benchmarks.values():
        for number in benchmark.config.shots:
            # Which exemplars are like the query is known when the model is.
            if benchmark.config.exemplars is None or not number:
                benchmark.check(benchmark.tasks(number))
    return benchmarks


def ask(flags: argparse.Namespace) -> dict[str, float]:
    """Asks the model of a run; all scores by key. Raises ValueError on what can be mended."""
    import hashlib

    from mm1_jax.checkpoints.checkpoint_folder import checkpoints_of
    from mm1_jax.checkpoints.trained_model import load_model, newest_step, placement_of
    from mm1_jax.evals.benchmarks.registry import CHAT, JUDGED, PRETRAINING, TEXT_CORE
    from mm1_jax.evals.evaluation import averages, evaluate
    from mm1_jax.evals.report import markdown
    from mm1_jax.launch.run_folder import load_experiment
    from mm1_jax.multihost import distributed
    from mm1_jax.multihost.agreement import agree, config_facts
    from mm1_jax.parallel.sharding import use_mesh
    from mm1_jax.storage import write_whole
    from mm1_jax.stored_config import flat_fields

    folder = flags.checkpoint
    # Left alone, a process whose files are other ones would be waited for.
    with distributed.together():
        if not folder.is_dir():
            raise ValueError(f"--checkpoint={folder}: no such folder; give a run's output folder")
        cfg = load_experiment(folder)
        # Replies to what was asked of the judge serve all steps.
        judge = judge_of(flags, (flags.output or folder / "evaluation") / "judge")
        benchmarks = built(flags, cfg)
        step = newest_step(folder, cfg) if flags.step is None else flags.step
        identity = {
            "step": step,
            "model": hashlib.sha256(cfg.model.debug_string().encode()).hexdigest(),
        }
        manifest = checkpoints_of(folder) / str(step) / "manifest.json"
        if manifest.exists():
            # Its checksums tell the parameters from those of another training.
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
                        make_bar=bar,
                        judge=judge,
                    )
                )
            if not distributed.is_first():
                continue
            # After each, so that what there is can be looked at.
            report = markdown(
                scores,
                title=f"{folder.resolve().name}, step {step}",
                pretraining=list(PRETRAINING),
                chat=[*CHAT, *JUDGED],
                text_core=list(TEXT_CORE),
                protocol=protocol,
            )
            write_whole(output / "report.md", report)
            values = {key: x for one in scores for key, x in one.named().items()}
            values |= averages(scores, list(PRETRAINING))
            values |= averages(scores, list(TEXT_CORE), "text_core")
            write_whole(output / "scores.json", json.dumps(values, indent=1) + "\n")
    if distributed.is_first():
        print(report)
        print(f"{output / 'report.md'}", file=sys.stderr)
    return values


def judge_of(flags: argparse.Namespace, cache_dir: Path) -> Any:
    """The judge of --judge_url, or None. Raises ValueError where it cannot be asked."""
    from mm1_jax.evals.judge import Judge

    if not flags.judge_url:
        return None
    return Judge(
        flags.judge_url,
        flags.judge_model,
        cache_dir=cache_dir,
        allow_http=flags.judge_allow_http,
    )


def table(scores: Mapping[str, Any], indent: str = "") -> list[str]:
    """Lines of names and numbers, groups indented."""
    lines = []
    for name, value in scores.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{name}", *table(value, indent + "  ")]
        else:
            shown = f"{value:.6g}" if isinstance(value, float) else str(value)
            lines.append(f"{indent}{name:<{max(36 - len(indent), 1)}} {shown}")
    return lines


@command
def main(argv: Sequence[str] | None = None) -> int:
    flags = parse(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal may lack the characters of questions and of names in files.
        sys.stdout.reconfigure(errors="backslashreplace")
    if flags.list:
        print(describe())
        return 0
    if flags.checkpoint is None:
        scores, notes = score_predictions(flags)
        write_scores(flags, scores)
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        print("\n".join(table(scores)))
        return 0
    # orbax warns that a folder which is only read is only read.
    logging.getLogger("absl").setLevel(logging.ERROR)
    cluster = chosen_cluster(flags)
    if cluster is not None:
        return of_several(
            cluster,
            lambda: ask_together(flags, cluster),
            errors=(ValueError, OSError),
            note=RESUMES,
        )
    try:
        write_scores(flags, ask(flags))
    except KeyboardInterrupt as stop:
        stop.add_note(RESUMES)
        raise
    return 0


def ask_together(flags: argparse.Namespace, cluster: Any) -> int:
    """One process of several asks with the others."""
    distributed = join(cluster, flags)
    from mm1_jax.multihost.agreement import agree, host_facts

    # The folders hold the same; where they are is another thing.
    given = {f"--{name}": x for name, x in vars(flags).items() if name not in MAY_DIFFER}
    agree(given | host_facts())
    distributed.start_devices()
    scores = ask(flags)
    if cluster.process_id == 0:
        write_scores(flags, scores)
    return 0


def write_scores(flags: argparse.Namespace, scores: Mapping[str, Any]) -> None:
    from mm1_jax.storage import write_whole

    if flags.json is not None:
        write_whole(flags.json, json.dumps(scores, indent=1) + os.linesep)


if __name__ == "__main__":
    sys.exit(main())
