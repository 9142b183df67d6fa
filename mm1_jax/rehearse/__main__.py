"""Entry point: compiles the train step of a named config for a slice, and reports memory and time.

    python -m mm1_jax.rehearse --config=mm1_tiny --topology=v5e:2x2

Imports nothing heavy at first: `--help`, errors in names and `--hlo` do not need jax.
"""

if __name__ == "__main__":
    from mm1_jax.command import end_on_signals

    # Before the imports, which take a second.
    end_on_signals()

import argparse
import contextlib
import gzip
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mm1_jax.command import command, started_as
from mm1_jax.flags import local_path, number, whole
from mm1_jax.launch.config_options import (
    add_config_options,
    chosen_launch,
    named_launch,
    say_note,
    split_overrides,
)
from mm1_jax.launch.launch import Launch
from mm1_jax.rehearse import gpus
from mm1_jax.rehearse.links import with_places
from mm1_jax.rehearse.report import (
    ModelFlops,
    advice,
    memory_report,
    program_report,
    render,
    render_table,
    repredicted,
)
from mm1_jax.rehearse.topologies import Topology, parse_topology
from mm1_jax.storage import write_whole
from mm1_jax.stored_config import config_differences, flat_fields

DOES_NOT_FIT = 3

# Default topologies of `--all`; a config is compiled for those that its mesh rules name.
TOPOLOGIES = (
    "v4:4x4x8",
    "v5e:8x8",
    "v5e:16x16",
    "v5p:4x4x4",
    "v5p:4x4x8",
    "v5p:4x8x8",
    "v6e:16x16",
    "tpu7x:4x4x8",
    "2xv5p:4x4x4",
)

# Parts of a config's text that fingerprints leave out: lines of eps, and the modules of classes.
_UNCOMPILED = re.compile(r"(?m)^.*\beps: .*\n?|(?<=')mm1_jax[\w.]*\.(?=\w+')")

# Keeps jax from looking for accelerators and libtpu from looking for its machine, and lets several
# processes load libtpu.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_MIN_LOG_LEVEL": "4",
    "TPU_STDERR_LOG_LEVEL": "4",
}

_DESCRIPTION = """\
Compiles the train step that a launch of a config would run, for a TPU slice or GPUs that
need not exist, and reports memory per device, FLOPs, collectives, and the step time and MFU
that follow from the compiled program. Runs on any CPU; no device is touched.
"""

_EPILOG = """\
topologies:
  v4:4x4x4  v5e:16x16  v5p:4x4x8  v6e:16x16  tpu7x:8x8x8   chips along each side
  2xv5p:4x4x4                                              two such slices
  v5p-128  v4-128  v5litepod-256  v6e-256                  Cloud's accelerator types
  h100:8  h200:8                                           GPUs of one host

step time:
  Predicted by a model of the compiled program, which was never checked on the chips;
  use it to compare programs. Each piece of work takes the most of the compiler's cycle
  estimate, its FLOPs at the peak, its bytes at memory bandwidth and its vector
  operations at the rate of the vector unit. Kernels have no estimate, nor have GPUs;
  products of kernels run at 0.87 of the peak, and their vector operations after them.
  Collectives' bytes go over the links of the axes that a group spans, and count as
  waiting unless the schedule overlaps them with compute. The report lists the step
  under other assumptions.

exit codes:
  0  compiled, and fits
  1  unexpected error
  2  error that a change of the command line or config fixes
  3  compiled, and does not fit; the report says by how much and what to change

examples:
  %(prog)s --config=mm1_tiny --topology=v5e:2x2
  %(prog)s --config=mm1_tiny --topology=v5p:2x2x2 \\
      --config.trainer.parallelism.fsdp=4 --json=tiny.json --save_hlo=tiny.hlo.gz
  %(prog)s --hlo=tiny.hlo.gz --topology=v5p:2x2x2
  %(prog)s --hlo=tiny.hlo.gz --topology=v5p:2x2x2 --update=tiny.json \\
      --config=mm1_tiny --config.trainer.parallelism.fsdp=4
  %(prog)s --all --configs=mm1_tiny,mm1_tiny_moe \\
      --topologies=v5e:2x2,v5p:2x2x1 --json=table.json
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=started_as("rehearse"),
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def add(name: str, metavar: str, help: str, **options: Any) -> None:
        parser.add_argument(name, metavar=metavar, help=help, **options)

    add_config_options(parser, required=False)
    add("--topology", "NAME", "the slice, e.g. v5p:4x4x8")
    add("--json", "FILE", "file for the report, or for the reports of --all", type=local_path)
    add(
        "--save_hlo",
        "FILE",
        "file for the compiled program (.gz: compressed)",
        type=local_path,
    )
    add("--hlo", "FILE", "predict this optimized HLO text (or .gz) instead", type=local_path)
    add(
        "--update",
        "FILE",
        "a report, or a table of --all, that has one of the program of --hlo: replaces its "
        "prediction, and keeps the rest; needs --config",
        type=local_path,
    )
    add(
        "--images_per_row",
        "N",
        "average images per row, for the model FLOPs (default: by stream: rows of captions are "
        "full, interleaved rows have 10, text has none, conversations have 22.36 views)",
        type=number(),
    )
    add(
        "--model_flops",
        "N",
        "model FLOPs per step of the program of --hlo, for its MFU",
        type=number(exclusive=True),
    )
    parser.add_argument(
        "--all", action="store_true", help="every config on every topology, each in its own process"
    )
    add("--jobs", "N", "parallel processes of --all (default: 1)", type=whole(), default=1)
    add("--configs", "A,B", "configs of --all (default: all named configs)")
    add(
        "--topologies",
        "A,B",
        f"topologies of --all (default: those of {', '.join(TOPOLOGIES)} that a mesh rule names)",
    )
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    rest, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    options = parser.parse_args(rest)
    os.environ.update(ENVIRONMENT)
    if options.all:
        return _rehearse_all(parser, options, overrides)
    if options.topology is None:
        parser.error("--topology=NAME is needed, e.g. --topology=v5p:4x4x8")
    topology = parse_topology(options.topology)
    if not topology.is_tpu:
        os.environ.update(gpus.environment())
    if options.update is not None and (options.hlo is None or options.config is None):
        parser.error("--update=FILE needs --hlo=FILE and --config=NAME, to know what to update")
    if options.hlo is not None:
        report = _predict_file(options, overrides, topology)
    elif options.config is None:
        parser.error("--config=NAME is needed, or --config_file=FILE, or --hlo=FILE")
    else:
        report = _rehearse(options, overrides, topology)
    if options.json is not None:
        _write(options.json, json.dumps(report, indent=2) + "\n")
    print(render(report))
    return 0 if report.get("memory", {"fits": True})["fits"] else DOES_NOT_FIT


def _rehearse(
    options: argparse.Namespace, overrides: Mapping[str, str], topology: Topology
) -> dict[str, Any]:
    launch = chosen_launch(options, overrides)
    with _progress(f"{launch.name} on {topology.name}") as progress:
        progress("resolving the config")
        cfg = launch.resolved_config(note=say_note)
        # jax reads the environment on import, so it must not be imported before.
        compiler = importlib.import_module("mm1_jax.rehearse.compile")
        num_images = compiler.expected_images(cfg, options.images_per_row)
        model = ModelFlops(compiler.model_flops(cfg, num_images), num_images)
        compiled = compiler.compile_train_step(cfg, topology, progress)
        report = {
            "config": launch.name,
            "overrides": dict(launch.overrides),
            "fingerprint": fingerprint(cfg, topology),
            **_described(topology),
            "mesh": compiled.mesh,
            "parallelism": compiled.parallelism,
            "tokens": cfg.input.batch_size * cfg.input.max_sequence_length,
            "memory": memory_report(compiled.memory, compiled.needed, topology),
            "flops": {"model": model.total, "images": num_images},
            "compile": {
                "lower_seconds": compiled.lower_seconds,
                "compile_seconds": compiled.compile_seconds,
            },
            "versions": compiler.versions(),
        }
        if not report["memory"]["fits"]:
            report["advice"] = advice(cfg, report)
        if compiled.text is not None:
            # Saved first, so that a later error does not lose minutes of compilation.
            if options.save_hlo is not None:
                _write(options.save_hlo, with_places(compiled.text, compiled.places))
            progress("predicting")
            report |= program_report(compiled.text, topology, model, compiled.places)
        compiled_by = "libtpu" if topology.is_tpu else "jax-cuda13-plugin"
        warnings = [*compiler.other_versions(compiled_by), *report.get("warnings", ())]
        report["warnings"] = warnings
    return report


def _predict_file(
    options: argparse.Namespace, overrides: Mapping[str, str], topology: Topology
) -> dict[str, Any]:
    model = None if options.model_flops is None else ModelFlops(options.model_flops)
    places, stored = None, None
    if options.config is not None:
        launch = chosen_launch(options, overrides)
        cfg = launch.resolved_config()
        if options.update is not None:
            key = _key(launch, topology)
            stored = _StoredReport(options.update, key, fingerprint(cfg, topology))
        compiler = importlib.import_module("mm1_jax.rehearse.compile")
        num_images = compiler.expected_images(cfg, options.images_per_row)
        model = ModelFlops(compiler.model_flops(cfg, num_images), num_images)
        places = compiler.places_of(cfg, topology)
    try:
        report = program_report(_read(options.hlo), topology, model, places)
        if stored is not None:
            return stored.update(report)
    except ValueError as error:
        raise ValueError(f"--hlo={options.hlo}: {error}") from error
    return {"hlo": str(options.hlo), **_described(topology), **report}


class _StoredReport:
    """A report in a file, alone or in a table."""

    def __init__(self, file: Path, key: str, current: str):
        """Finds the report of this key.

        Raises:
            ValueError: There is none, or its fingerprint is not `current`.
        """
        self._file, self._content = file, json.loads(file.read_text())
        self._reports = self._content.get("reports", [self._content])
        places = [n for n, each in enumerate(self._reports) if report_key(each) == key]
        if not places:
            raise ValueError(f"--update={file}: there is no report of {key}")
        (self._place,) = places
        if self._reports[self._place].get("fingerprint") != current:
            raise ValueError(
                f"--update={file}: {key} was compiled from another config; compile it again"
            )

    def update(self, prediction: Mapping[str, Any]) -> dict[str, Any]:
        """Replaces the prediction of the report in its file, and returns the report."""
        report = self._reports[self._place] = repredicted(self._reports[self._place], prediction)
        content = self._content if "reports" in self._content else report
        _write(self._file, json.dumps(content, indent=2) + "\n")
        return report


def _rehearse_all(
    parser: argparse.ArgumentParser, options: argparse.Namespace, overrides: Mapping[str, str]
) -> int:
    """Rehearses each pair in its own process; skips pairs whose report is in `--json` already."""
    if options.json is None:
        parser.error("--all needs --json=FILE, where it stores the reports")
    if options.config is not None:
        parser.error("--all rehearses named configs; choose some by --configs=A,B")
    module = importlib.import_module("mm1_jax.launch.named_configs")
    names = (
        options.configs.split(",")
        if options.configs
        else sorted(module.named_configs(options.module))
    )
    launches = {name: named_launch(name, options, overrides) for name in names}
    configs = {name: launch.resolved_config() for name, launch in launches.items()}
    reports: dict[str, dict[str, Any]] = {}
    if options.json.exists():
        stored = json.loads(options.json.read_text())
        reports = {report_key(each): each for each in stored["reports"]}
    if options.topologies:
        chosen = [parse_topology(name) for name in options.topologies.split(",")]
        pairs = [(name, topology) for name in names for topology in chosen]
    else:
        known = [parse_topology(name) for name in TOPOLOGIES]
        pairs = [(name, t) for name in names for t in known if _has_mesh_rule(configs[name], t)]
    lock = threading.Lock()

    def key_of(name: str, topology: Topology) -> str:
        return _key(launches[name], topology)

    def add(number: int, name: str, topology: Topology) -> None:
        key, current = key_of(name, topology), fingerprint(configs[name], topology)
        present = reports.get(key, {"error": "not there yet"})
        if "error" not in present and present.get("fingerprint") == current:
            return
        print(f"[{number}/{len(pairs)}] {key}", file=sys.stderr, flush=True)
        report = _rehearse_in_a_process(launches[name], topology, options)
        with lock:
            reports[key] = {**report, "fingerprint": current}
            ordered = [reports[key] for key in sorted(reports)]
            _write(options.json, json.dumps({"reports": ordered}, indent=2) + "\n")

    with ThreadPoolExecutor(options.jobs) as pool:
        started = [pool.submit(add, n, *pair) for n, pair in enumerate(pairs, start=1)]
        for each in started:
            each.result()
    asked = [reports[key_of(*pair)] for pair in pairs]
    print(render_table(asked))
    return 1 if any("error" in report for report in asked) else 0


def _has_mesh_rule(cfg: Any, topology: Topology) -> bool:
    matches = importlib.import_module("mm1_jax.parallel.parallelism").matches
    return any(matches(rule, _devices_name(topology)) for rule in cfg.trainer.mesh_rules)


def _devices_name(topology: Topology) -> str:
    name_of = importlib.import_module("mm1_jax.parallel.parallelism").name_of
    return name_of(topology.chip.name, topology.num_devices, topology.num_slices)


def _rehearse_in_a_process(
    launch: Launch, topology: Topology, options: argparse.Namespace
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        arguments = [f"--config={launch.config}", f"--topology={topology.name}", f"--json={file}"]
        arguments += [f"--config.{path}={text}" for path, text in launch.overrides.items()]
        arguments += ["--small"] * launch.small
        for option in ("module", "images_per_row"):
            if getattr(options, option) is not None:
                arguments.append(f"--{option}={getattr(options, option)}")
        result = subprocess.run(
            [sys.executable, "-m", "mm1_jax.rehearse", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if file.exists():
            return json.loads(file.read_text())
    lines = result.stderr.strip().splitlines()
    error = next((line for line in lines if line.startswith("error: ")), (lines or [""])[-1])
    print(f"  {error}", file=sys.stderr, flush=True)
    return {
        "config": launch.name,
        "overrides": dict(launch.overrides),
        **_described(topology),
        "error": error.removeprefix("error: ") or f"exit status {result.returncode}",
    }


def _key(launch: Launch, topology: Topology) -> str:
    asked = {"config": launch.name, "topology": topology.name, "overrides": launch.overrides}
    return report_key(asked)


def report_key(report: Mapping[str, Any]) -> str:
    """Returns the key of a report in a table: config, topology, and the fields that were set."""
    fields = (f" {path}={text}" for path, text in sorted(report.get("overrides", {}).items()))
    return f"{report['config']} on {report['topology']}" + "".join(fields)


def _described(topology: Topology) -> dict[str, Any]:
    return {
        "topology": topology.name,
        "num_chips": topology.num_chips,
        "num_devices": topology.num_devices,
    }


def fingerprint(cfg: Any, topology: Topology) -> str:
    """Returns a hash of everything in a config that its program for these devices depends on.

    Data, logging, checkpoints and mesh rules for other devices do not change it. Neither does a new
    field until it is set: fields that are None or empty are not in the text of a config, and fields
    at a default that stands for their absence (`stored_config.DEFAULTS`) are left out. So are the
    eps of norms, constants on which no figure of a report depends, and the modules of classes.
    """
    choose = importlib.import_module("mm1_jax.parallel.parallelism").choose
    trainer = cfg.trainer
    chosen = choose(trainer.mesh_rules, trainer.parallelism, _devices_name(topology))
    configs = (cfg.model, trainer.optimizer, trainer.loss, chosen)
    objective = cfg.klass.objective(cfg)
    compiled = (
        *(_UNCOMPILED.sub("", _chosen_text(each)) for each in configs),
        str(objective.batch),
        str(objective.num_corpora),
    )
    return hashlib.sha256("\n".join(compiled).encode()).hexdigest()[:16]


def _chosen_text(cfg: Any) -> str:
    chosen = {each.path for each in config_differences("", cfg)}
    # A None inside a tuple is no difference from an empty config, but part of the program.
    chosen |= {path for path, value in flat_fields(cfg).items() if value is None}
    lines = cfg.debug_string().splitlines()
    return "\n".join(line for line in lines if line.partition(": ")[0] in chosen)


def _read(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode()
    write_whole(path, gzip.compress(data) if path.suffix == ".gz" else data)


@contextlib.contextmanager
def _progress(title: str) -> Iterator[Callable[[str], None]]:
    """Prints stage and elapsed time to stderr: every second on a terminal, else every 30 s."""
    is_terminal = sys.stderr.isatty()
    start, over = time.monotonic(), threading.Event()
    stage = ""

    def line() -> str:
        return f"{title}: {stage}, {time.monotonic() - start:.0f} s"

    def repeat() -> None:
        while not over.wait(1 if is_terminal else 30):
            print(
                f"\r{line()}\033[K" if is_terminal else line(),
                end="" if is_terminal else "\n",
                file=sys.stderr,
                flush=True,
            )

    def progress(name: str) -> None:
        nonlocal stage
        stage = name
        if not is_terminal:
            print(line(), file=sys.stderr, flush=True)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield progress
    finally:
        over.set()
        thread.join()
        if is_terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
