"""Entry point: finds a named config, applies overrides, builds the experiment and runs it.

    python -m mm1_jax.launch --config=mm1_tiny --config.trainer.max_steps=100

Nothing heavy is imported here: experiments are imported after the command line is parsed, and jax
after all processes of the run have met.
"""

if __name__ == "__main__":
    from mm1_jax.command import end_on_signals

    # Before the imports, which take a second.
    end_on_signals()

import argparse
import contextlib
import hashlib
import importlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging

from mm1_jax.command import started_as, status_of
from mm1_jax.config_file import as_json, full_text
from mm1_jax.experiment_folders import EXPERIMENTS
from mm1_jax.flags import local_path, whole
from mm1_jax.launch.config_options import (
    add_config_options,
    chosen_launch,
    say_note,
    split_overrides,
)
from mm1_jax.launch.launch import Launch
from mm1_jax.launch.named_configs import described_configs
from mm1_jax.launch.processes import (
    NOT_SAVED,
    USER_ERRORS,
    add_cluster_options,
    chosen_cluster,
    failed,
    join,
    of_several,
    status_of_exit,
)
from mm1_jax.launch.run_folder import MAY_CHANGE, RunFolder
from mm1_jax.launch.supervisor import supervise
from mm1_jax.multihost.cluster import Cluster
from mm1_jax.multihost.rendezvous import DECLINE_SECONDS, decline
from mm1_jax.storage import user_cache
from mm1_jax.stored_config import flat_fields

_DESCRIPTION = """\
Trains a named config and writes checkpoints, metrics and a report into a folder.
A second launch into the same folder resumes the run, and SIGTERM saves before it ends.
"""

_EPILOG = f"""\
fields of the config:
  --config.PATH=VALUE     sets any field, e.g. --config.trainer.max_steps=100
                          or --config.evals.digits_vqa.num_examples=10 or
                          --config.input.streams.0.weight=3; --print_config shows the
                          paths. What must agree follows: the input takes the number
                          of tokens per image from the model's connector.
  --config.PATH=CLASS     chooses another class for a part, e.g.
                          --config.model.connector=AveragePooling; fields that both
                          classes have, and that were set, are kept
  --config.PATH.FIELD=V   of a part that is not set: begins with its defaults, e.g.
                          --config.trainer.wandb.project=mm1
  --config.evals.NAME=None  switches an evaluator off; --evals=A,B keeps A and B alone

config files:
  --print_config=json > FILE prints a config, and --config_file=FILE launches it, with
  --config.PATH=VALUE on top. A file runs and imports nothing: its classes are those of
  this package, or loaded by --module, that their fields admit; its functions are those
  that named configs use.

resuming:
  A launch into the folder of a run resumes it with the same config. These fields may change:
  {", ".join(MAY_CHANGE[:5])},
  {", ".join(MAY_CHANGE[5:9])},
  {", ".join(MAY_CHANGE[9:])}
  (max_steps only if optimizer.decay_steps, which follows it unless set, stays the same).

exit codes:
  0         done, or was done already
  1         unexpected error
  2         error that needs a change of the command line, config or data, e.g. an unknown
            field, too many images that cannot be decoded, a loss that is not finite
  3         trained and reported, but an evaluation or the last save failed; launch again to
            repeat it
  130, 143  stopped by SIGINT or SIGTERM, and saved if training had begun; launch again to
            continue

many processes:
  Give the same command on every host. On Cloud TPU, GKE, Slurm and under mpirun, the processes
  find each other; elsewhere set --coordinator_address, --num_processes and --process_id.
  docs/rehearse_and_launch_on_pods.md describes the launch files.

examples:
  %(prog)s --list
  %(prog)s --config=mm1_tiny
  %(prog)s --config=mm1_tiny --config.model.connector.num_image_tokens=9 \\
      --output_dir=runs/nine_tokens
  %(prog)s --module=my.module --config=my_config --print_config
  %(prog)s --config=mm1_7b_moe --small
  %(prog)s --config=mm1_tiny --dry_run
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=started_as("launch"),
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_config_options(parser, required=False)
    parser.add_argument(
        "--output_dir",
        metavar="DIR",
        type=local_path,
        help="output folder (default: ./runs/NAME)",
    )
    parser.add_argument("--list", action="store_true", help="show all named configs and exit")
    parser.add_argument(
        "--print_config",
        nargs="?",
        const="text",
        choices=("text", "json"),
        help="show every field of the resolved config and exit; json prints what --config_file "
        "reads back",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="build everything, compile the step, load one batch, report memory and counts, and "
        "exit; trains nothing and writes no run folder",
    )
    parser.add_argument(
        "--max_restarts",
        metavar="N",
        type=whole(0),
        default=0,
        help="restart a run that dies, at most N times (default: 0)",
    )
    parser.add_argument(
        "--compilation_cache",
        metavar="DIR",
        default="default",
        help='cache folder of compiled programs, "" for no cache (default: the environment '
        "variable JAX_COMPILATION_CACHE_DIR, or a folder in ~/.cache/mm1_jax)",
    )
    add_cluster_options(parser)
    parser.add_argument(
        "--verbosity",
        metavar="N",
        type=whole(-1),
        default=-1,
        help="log level: -1 warnings (default), 0 information, 1 also tracebacks of errors",
    )
    return parser


def list_configs(module: str | None) -> str:
    configs = described_configs(module)
    width = max(map(len, configs), default=0)
    return "\n".join(f"{name:{width}}  {text}".rstrip() for name, text in sorted(configs.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the result is the exit status."""
    return status_of(lambda: _main(list(sys.argv[1:] if argv is None else argv)), errors=())


def _main(arguments: list[str]) -> int:
    rest, overrides = split_overrides(arguments)
    parser = _parser()
    options = parser.parse_args(rest)
    logging.set_verbosity(options.verbosity)
    # Libraries may read absl flags, which this parser replaces.
    flags.FLAGS.mark_as_parsed()
    cluster = None
    try:
        if options.list:
            print(list_configs(options.module))
            return 0
        if options.config is None:
            parser.error("--config=NAME is needed, or --config_file=FILE; --list shows all names")
        if options.max_restarts > 0:
            command = [sys.executable, "-m", "mm1_jax.launch", *arguments, "--max_restarts=0"]
            return supervise(command, options.max_restarts)
        _keep_programs(options.compilation_cache)
        cluster = None if options.print_config else chosen_cluster(options)
        launch = chosen_launch(options, overrides)
        cfg = launch.resolved_config(note=say_note)
        if options.print_config:
            if options.print_config == "json":
                print(as_json(launch.config, launch.written_config(), cfg))
            else:
                print(full_text(cfg))
            return 0
        folder = RunFolder(options.output_dir or Path("runs") / launch.name)
    except USER_ERRORS as error:
        status = failed(error, cluster)
        if cluster is not None:
            decline(cluster, str(error), min(options.initialization_timeout, DECLINE_SECONDS))
        return status
    if cluster is None:
        if options.dry_run:
            return _dry_run_alone(launch, cfg, folder)
        return _run_alone(launch, cfg, folder)
    return of_several(cluster, lambda: _run(launch, cfg, folder, cluster, options))


def _run_alone(launch: Launch, cfg: Any, folder: RunFolder) -> int:
    try:
        with folder.lock():
            kept = folder.claim(launch, cfg)
            cfg = launch.resolved_config(kept) if kept else cfg
            finished = getattr(cfg.klass, "finished", None)
            if finished and (line := finished(cfg, folder.path)):
                print(line)
            else:
                cfg.instantiate(output_dir=folder.path).run()
    except USER_ERRORS as error:
        return failed(error)
    except KeyboardInterrupt as stop:
        stop.add_note(NOT_SAVED)
        raise
    except SystemExit as end:
        return status_of_exit(end)
    print(f"Outputs: {folder.path}", flush=True)
    return 0


def _dry_run_alone(launch: Launch, cfg: Any, folder: RunFolder) -> int:
    try:
        folder.check(launch, cfg)
        # Records that cannot be read are noted in a file of the output folder.
        with tempfile.TemporaryDirectory() as outputs:
            report = _dry_run(cfg.instantiate(output_dir=Path(outputs)))
    except USER_ERRORS as error:
        return failed(error)
    print(report, flush=True)
    return 0


def _dry_run(experiment: Any) -> str:
    """Returns the report of a dry run of an experiment."""
    run = getattr(experiment, "dry_run", None)
    if run is None:
        raise ValueError(f"--dry_run: {type(experiment).__name__} has no method dry_run")
    return f"{run()}\ndry run: nothing was trained, and no run folder was written"


def _run(
    launch: Launch, cfg: Any, folder: RunFolder, cluster: Cluster, options: argparse.Namespace
) -> int:
    """Builds the experiment and runs it together with the other processes."""
    distributed = importlib.import_module("mm1_jax.multihost.distributed")
    if distributed.uses_devices():
        others = "" if options.module else " (or another module of `experiments`)"
        raise ValueError(
            f"{launch.module or 'experiments'}{others}: its import, or the function of "
            f"--config={launch.config}, uses JAX's devices, which a process may only do after it "
            "has joined the others; make arrays, and ask for devices, in classes that the config "
            "names (numpy serves a config)"
        )
    join(cluster, options)
    agreement = importlib.import_module("mm1_jax.multihost.agreement")
    agreement.agree(
        {
            "--config": launch.config,
            "--output_dir": folder.path.absolute(),
            "module of the config": launch.module,
            **agreement.config_facts(flat_fields(cfg)),
            **agreement.host_facts([EXPERIMENTS, str(launch.module).partition(".")[0]]),
        }
    )
    if options.dry_run:
        with distributed.together():
            folder.check(launch, cfg)
        distributed.start_devices()
        with tempfile.TemporaryDirectory() as outputs:
            with distributed.together():
                experiment = cfg.instantiate(output_dir=Path(outputs))
            report = _dry_run(experiment)
        if cluster.process_id == 0:
            print(report, flush=True)
        return 0
    with contextlib.ExitStack() as stack:
        kept = None
        with distributed.together():
            if distributed.is_first():
                stack.enter_context(folder.lock())
                kept = folder.claim(launch, cfg)
        kept = distributed.broadcast(kept)
        cfg = launch.resolved_config(kept) if kept else cfg
        distributed.start_devices()
        with distributed.together():
            experiment = cfg.instantiate(output_dir=folder.path)
            # Reads data, which may fail on one host alone.
            data = experiment.fingerprint()
        agreement.agree(data)
        experiment.run()
    if cluster.process_id == 0:
        print(f"Outputs: {folder.path}", flush=True)
    return 0


def _keep_programs(folder: str) -> None:
    """Sets the folder of compiled programs, before jax is imported."""
    if "jax" in sys.modules:
        return
    if not folder:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    elif folder != "default":
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    else:
        # Machines with different CPUs may share the home folder, and cannot share programs.
        default = user_cache() / "programs" / _cpu()
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(default))


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    return hashlib.sha256("\n".join(sorted(flags)).encode()).hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(main())
