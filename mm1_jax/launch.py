"""Entry point: finds a named config, applies overrides, builds the experiment and runs it.

    python -m mm1_jax.launch --config=mm1_tiny --config.trainer.max_steps=100

Nothing heavy is imported here: experiments are imported when the command line is understood, and
jax when all processes of the run have met.
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
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging

from mm1_jax.cluster import Cluster, find_cluster
from mm1_jax.command import USER_ERROR, complain, ignore_signals, status_of, stop_status
from mm1_jax.flags import local_path, local_text, whole
from mm1_jax.named_configs import find_named_config, named_configs
from mm1_jax.rendezvous import DECLINE_SECONDS, decline, meet
from mm1_jax.run_folder import MAY_CHANGE, Launch, RunFolder
from mm1_jax.supervisor import supervise

# Said of a launch that a signal stops where it cannot save.
_NOT_SAVED = "nothing was saved at this point, launch again to continue"

# Ended by a change of the command line, config or data; FloatingPointError is a loss that is not
# finite. Anything else is worth another start.
_USER_ERRORS = (ValueError, FileNotFoundError, FloatingPointError)

_DESCRIPTION = """\
Trains a named config and writes checkpoints, metrics and a report into a folder.
A second launch into the same folder resumes the run, and SIGTERM saves before it ends.
"""

_EPILOG = f"""\
fields of the config:
  --config.PATH=VALUE   sets any field, e.g. --config.trainer.max_steps=100
                        or --config.evals.digits_vqa.num_examples=10 or
                        --config.input.streams.0.weight=3; --print_config shows the
                        paths. What must agree follows: the input takes the number
                        of tokens per image from the model's connector.

resuming:
  A run goes on in its folder with the same config. These fields may change:
  {", ".join(MAY_CHANGE[:5])},
  {", ".join(MAY_CHANGE[5:9])},
  {", ".join(MAY_CHANGE[9:])}
  (max_steps where it leaves optimizer.decay_steps, which follows it unless set, as it was).

exit codes:
  0         done, or was done already
  1         unexpected error
  2         error that a change of the command line, config or data mends, e.g. an unknown
            field, too many bad pictures, a loss that is not finite
  3         trained and reported, but an evaluation or the last save failed; launch again to
            repeat it
  130, 143  stopped by SIGINT or SIGTERM, and saved if training had begun; launch again to
            continue

many processes:
  Give the same command on every host. On Cloud TPU, GKE, Slurm and under mpirun, the processes
  find each other; elsewhere --coordinator_address, --num_processes and --process_id say who they
  are. docs/pods.md has the launch files.

examples:
  python -m mm1_jax.launch --list
  python -m mm1_jax.launch --config=mm1_tiny
  python -m mm1_jax.launch --config=mm1_tiny --config.model.connector.num_image_tokens=9 \\
      --output_dir=runs/nine_tokens
  python -m mm1_jax.launch --module=my.module --config=my_config --print_config
"""

_OVERRIDE = re.compile(r"--?(no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separates `--config.PATH=VALUE` from the other arguments; `--[no]config.PATH` is a bool."""
    rest: list[str] = []
    overrides: dict[str, str] = {}
    arguments = list(argv)
    while arguments:
        argument = arguments.pop(0)
        match = _OVERRIDE.fullmatch(argument)
        if match is None:
            rest.append(argument)
            continue
        negated, path, value = match.groups()
        if negated and value is not None:
            print(
                f"error: {argument}: --noconfig.{path} takes no value, it sets the field to False; "
                f"--config.{path}={value} sets another value",
                file=sys.stderr,
            )
            raise SystemExit(USER_ERROR)
        if value is None and not negated and arguments and not arguments[0].startswith("--"):
            value = arguments.pop(0)
        if value is None:
            value = "false" if negated else "true"
        # The last one counts, in its place.
        overrides.pop(path, None)
        overrides[path] = value
    return rest, overrides


def add_config_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """The options that name a config; `split_overrides` has taken those that change it."""
    parser.add_argument(
        "--config",
        metavar="NAME",
        required=required,
        help="a named config, which --list of a launch shows; --config.PATH=VALUE sets a field",
    )
    parser.add_argument(
        "--module",
        metavar="MODULE",
        help="the module whose named_configs() has NAME, in the current folder or on PYTHONPATH "
        "(default: all modules of `experiments`)",
    )
    parser.add_argument(
        "--data_dir",
        type=local_text,
        metavar="DIR",
        help="where records and tokenizer lie (short for --config.input.data_dir; default: ./data)",
    )


def chosen_launch(options: argparse.Namespace, overrides: Mapping[str, str]) -> Launch:
    """What these options name. Raises ValueError where there is no such config."""
    if options.data_dir is not None:
        overrides = {**overrides, "input.data_dir": options.data_dir}
    named = find_named_config(options.config, options.module)
    return Launch(named.name, named.module, overrides)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mm1_jax.launch",
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
        help="where outputs go (default: ./runs/NAME)",
    )
    parser.add_argument("--list", action="store_true", help="show all named configs and exit")
    parser.add_argument(
        "--print_config", action="store_true", help="show the resolved config and exit"
    )
    parser.add_argument(
        "--max_restarts",
        metavar="N",
        type=whole(0),
        default=0,
        help="start a run again that died, so many times (default: 0)",
    )
    parser.add_argument(
        "--compilation_cache",
        metavar="DIR",
        default="default",
        help='where compiled programs are kept; "" for nowhere (default: in ~/.cache/mm1_jax, or '
        "what JAX_COMPILATION_CACHE_DIR says)",
    )
    add_cluster_options(parser)
    parser.add_argument(
        "--verbosity",
        metavar="N",
        type=whole(-1),
        default=-1,
        help="what libraries log: -1 warnings (default), 0 information, 1 tracebacks of errors too",
    )
    return parser


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which processes work together, for `chosen_cluster` and `join`."""
    group = parser.add_argument_group("many processes")
    group.add_argument("--coordinator_address", metavar="HOST:PORT", help="of process 0")
    group.add_argument("--num_processes", metavar="N", type=whole(), help="1: on its own, anywhere")
    group.add_argument("--process_id", metavar="I", type=whole(0), help="which of them, from 0")
    group.add_argument(
        "--initialization_timeout",
        metavar="SECONDS",
        type=whole(),
        default=300,
        help="how long processes wait for each other at the start (default: 300)",
    )
    group.add_argument(
        "--heartbeat_timeout",
        metavar="SECONDS",
        type=whole(),
        default=30,
        help="after which a silent process counts as dead, which ends the others (default: 30)",
    )


def chosen_cluster(options: argparse.Namespace) -> Cluster | None:
    """The processes that options or environment tell of; None where this one is on its own."""
    return find_cluster(options.coordinator_address, options.num_processes, options.process_id)


def join(cluster: Cluster, options: argparse.Namespace) -> Any:
    """Waits for the others, and becomes one of them; `mm1_jax.distributed`, to speak with them."""
    meet(cluster, options.initialization_timeout)
    distributed = importlib.import_module("mm1_jax.distributed")
    distributed.initialize(
        cluster,
        initialization_timeout=options.initialization_timeout,
        heartbeat_timeout=options.heartbeat_timeout,
    )
    return distributed


def list_configs(module: str | None) -> str:
    configs = named_configs(module)
    width = max(map(len, configs), default=0)
    return "\n".join(
        f"{name:{width}}  {configs[name].summary}".rstrip() for name in sorted(configs)
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the result is the exit status."""
    return status_of(lambda: _main(list(sys.argv[1:] if argv is None else argv)), errors=())


def _main(arguments: list[str]) -> int:
    rest, overrides = split_overrides(arguments)
    parser = _parser()
    options = parser.parse_args(rest)
    logging.set_verbosity(options.verbosity)
    # Libraries may read flags of absl, which this parser stands in for.
    flags.FLAGS.mark_as_parsed()
    cluster = None
    try:
        if options.list:
            print(list_configs(options.module))
            return 0
        if options.config is None:
            parser.error("--config=NAME is needed; --list shows all names")
        if options.max_restarts > 0:
            command = [sys.executable, "-m", "mm1_jax.launch", *arguments, "--max_restarts=0"]
            return supervise(command, options.max_restarts)
        _keep_programs(options.compilation_cache)
        cluster = None if options.print_config else chosen_cluster(options)
        launch = chosen_launch(options, overrides)
        cfg = launch.resolved_config()
        if options.print_config:
            print(cfg.debug_string())
            return 0
        folder = RunFolder(options.output_dir or Path("runs") / options.config)
    except _USER_ERRORS as error:
        status = _failed(error, cluster)
        if cluster is not None:
            decline(cluster, str(error), min(options.initialization_timeout, DECLINE_SECONDS))
        return status
    if cluster is None:
        return _run_alone(launch, cfg, folder)
    return of_several(cluster, lambda: _run(launch, cfg, folder, cluster, options))


def _run_alone(launch: Launch, cfg: Any, folder: RunFolder) -> int:
    try:
        with folder.lock():
            kept = folder.claim(launch, cfg)
            cfg = launch.resolved_config(kept) if kept else cfg
            cfg.instantiate(output_dir=folder.path).run()
    except _USER_ERRORS as error:
        return _failed(error)
    except KeyboardInterrupt as stop:
        stop.add_note(_NOT_SAVED)
        raise
    except SystemExit as end:
        return _status_of_exit(end)
    print(f"Outputs: {folder.path}", flush=True)
    return 0


def _run(
    launch: Launch, cfg: Any, folder: RunFolder, cluster: Cluster, options: argparse.Namespace
) -> int:
    """Builds the experiment and runs it together with the other processes."""
    distributed = importlib.import_module("mm1_jax.distributed")
    if distributed.uses_devices():
        others = "" if options.module else " (or another module of `experiments`)"
        raise ValueError(
            f"{launch.module}{others}: its import, or the function of --config={launch.config}, "
            "uses JAX's devices, which a process may only do after it has joined the others; make "
            "arrays, and ask for devices, in classes that the config names (numpy serves a config)"
        )
    join(cluster, options)
    agreement = importlib.import_module("mm1_jax.agreement")
    agreement.agree(
        {
            "--config": launch.config,
            "--output_dir": folder.path.absolute(),
            "module of the config": launch.module,
            **agreement.config_facts(cfg),
            **agreement.host_facts(str(launch.module).split(".")[:1]),
        }
    )
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
            # Read here, where each may fail alone.
            data = experiment.fingerprint()
        agreement.agree(data)
        experiment.run()
    if cluster.process_id == 0:
        print(f"Outputs: {folder.path}", flush=True)
    return 0


def of_several(
    cluster: Cluster,
    action: Callable[[], int],
    *,
    errors: tuple[type[Exception], ...] = _USER_ERRORS,
    note: str = _NOT_SAVED,
) -> int:
    """Exit status of an action of one process of several, which ends with it.

    Args:
        errors: Those whose text is all that a user needs; others keep their traceback.
        note: Said of an action that a signal has stopped.
    """
    in_order = False
    try:
        status = action()
        in_order = True
    except errors as error:
        status = _failed(error, cluster)
    except KeyboardInterrupt as stop:
        stop.add_note(note)
        status = stop_status(stop)
    except SystemExit as end:
        status, in_order = _status_of_exit(end), True
    except BaseException:
        traceback.print_exc()
        status = 1
    leave(cluster, status, in_order=in_order)
    return status


def _failed(error: Exception, cluster: Cluster | None = None) -> int:
    logging.debug("Traceback of the error below:", exc_info=True)
    process = "" if cluster is None else f" (process {cluster.process_id})"
    complain(f"error{process}: {error}")
    return USER_ERROR


def _status_of_exit(end: SystemExit) -> int:
    """Status of a run that was stopped or lacks an evaluation; 0 stands for success alone."""
    if isinstance(end.code, int) and end.code:
        return end.code
    complain(f"error: the experiment ended the process before its end, by sys.exit({end.code!r})")
    return 1


def leave(cluster: Cluster | None, status: int, *, in_order: bool = False) -> None:
    """Ends a process of several; `in_order` where all of them end alike. Alone: does nothing.

    Returns where there is no connection to the others: none of them waits for this process in a
    way that it cannot see.
    """
    distributed = sys.modules.get("mm1_jax.distributed")
    if cluster is None or distributed is None:
        return
    # A supervisor of all processes, srun for one, stops those that are left when the first ends,
    # and they have to say the same.
    ignore_signals()
    if in_order:
        distributed.finish(status)
    else:
        distributed.leave(status)


def _keep_programs(folder: str) -> None:
    """Tells jax, which is not imported yet, where compiled programs are kept."""
    if "jax" in sys.modules:
        return
    if not folder:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    elif folder != "default":
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        # Code for one CPU may not run on another one that shares the home.
        default = cache / "mm1_jax" / "programs" / _cpu()
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
