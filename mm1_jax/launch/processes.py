"""A process of a multi-process run: its options, how it joins the others, and how it ends."""

import argparse
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Collection, Mapping
from typing import Any

from absl import logging

from mm1_jax.command import USER_ERROR, complain, ignore_signals, stop_status
from mm1_jax.flags import whole
from mm1_jax.multihost.cluster import Cluster, find_cluster
from mm1_jax.multihost.rendezvous import meet
from mm1_jax.storage import write_whole

# Note on a launch that a signal stops at a point where it cannot save.
NOT_SAVED = "nothing was saved at this point, launch again to continue"

# Errors that need a change of the command line, config or data; FloatingPointError is raised for a
# loss that is not finite. After any other error, a restart may succeed.
USER_ERRORS = (ValueError, FileNotFoundError, FloatingPointError)
# Options of an evaluation that may differ between its processes.
_MAY_DIFFER = ("process_id", "initialization_timeout", "heartbeat_timeout", "json")


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that define the processes of a run, for `chosen_cluster` and `join`."""
    group = parser.add_argument_group("many processes")
    group.add_argument("--coordinator_address", metavar="HOST:PORT", help="address of process 0")
    group.add_argument(
        "--num_processes", metavar="N", type=whole(), help="number of processes; 1 runs alone"
    )
    group.add_argument(
        "--process_id", metavar="I", type=whole(0), help="index of this process, from 0"
    )
    group.add_argument(
        "--initialization_timeout",
        metavar="SECONDS",
        type=whole(),
        default=300,
        help="timeout for processes that wait for each other at the start (default: 300)",
    )
    group.add_argument(
        "--heartbeat_timeout",
        metavar="SECONDS",
        type=whole(),
        default=30,
        help="time without a heartbeat after which a process counts as dead, and the others end "
        "(default: 30)",
    )


def chosen_cluster(options: argparse.Namespace) -> Cluster | None:
    """Returns the processes that options or environment define; None for a single process."""
    return find_cluster(options.coordinator_address, options.num_processes, options.process_id)


def join(cluster: Cluster, options: argparse.Namespace) -> Any:
    """Waits for the other processes and joins them.

    Returns:
        The module `mm1_jax.multihost.distributed`, for communication between them.
    """
    meet(cluster, options.initialization_timeout)
    distributed = importlib.import_module("mm1_jax.multihost.distributed")
    distributed.initialize(
        cluster,
        initialization_timeout=options.initialization_timeout,
        heartbeat_timeout=options.heartbeat_timeout,
    )
    return distributed


def of_several(
    cluster: Cluster,
    action: Callable[[], int],
    *,
    errors: tuple[type[Exception], ...] = USER_ERRORS,
    note: str = NOT_SAVED,
) -> int:
    """Runs the action of one process of several, ends the process, and returns the exit status.

    Args:
        errors: Exceptions reported by their text alone; others keep their traceback.
        note: Added to the message if a signal stops the action.
    """
    in_order = False
    try:
        status = action()
        in_order = True
    except errors as error:
        status = failed(error, cluster)
    except KeyboardInterrupt as stop:
        stop.add_note(note)
        status = stop_status(stop)
    except SystemExit as end:
        status, in_order = status_of_exit(end), True
    except BaseException:
        traceback.print_exc()
        status = 1
    leave(cluster, status, in_order=in_order)
    return status


def evaluated(
    options: argparse.Namespace,
    evaluate: Callable[[argparse.Namespace], Mapping[str, Any]],
    *,
    folders: Collection[str],
    note: str,
) -> int:
    """Evaluates alone or as one process of several; the first one writes the scores to --json.

    Args:
        evaluate: Returns all scores by key. It imports what it needs, so that a process joins the
            others before it imports jax.
        folders: Options whose files every process must see, though by other paths.
        note: Added to the message if a signal stops the evaluation.
    """
    cluster = chosen_cluster(options)

    def action() -> int:
        if cluster is not None:
            distributed = join(cluster, options)
            agreement = importlib.import_module("mm1_jax.multihost.agreement")
            may_differ = {*_MAY_DIFFER, *folders}
            given = {f"--{name}": x for name, x in vars(options).items() if name not in may_differ}
            agreement.agree(given | agreement.host_facts())
            distributed.start_devices()
        scores = evaluate(options)
        if cluster is None or cluster.process_id == 0:
            write_scores(options, scores)
        return 0

    if cluster is not None:
        return of_several(cluster, action, errors=(ValueError, OSError), note=note)
    try:
        return action()
    except KeyboardInterrupt as stop:
        stop.add_note(note)
        raise


def write_scores(options: argparse.Namespace, scores: Mapping[str, Any]) -> None:
    """Writes the scores to the file of --json, if given."""
    if options.json is not None:
        write_whole(options.json, json.dumps(scores, indent=1) + os.linesep)


def failed(error: Exception, cluster: Cluster | None = None) -> int:
    logging.debug("Traceback of the error below:", exc_info=True)
    process = "" if cluster is None else f" (process {cluster.process_id})"
    complain(f"error{process}: {error}")
    return USER_ERROR


def status_of_exit(end: SystemExit) -> int:
    """Returns the status of a run that was stopped or lacks an evaluation; 0 means success only."""
    if isinstance(end.code, int) and end.code:
        return end.code
    complain(f"error: the experiment ended the process before its end, by sys.exit({end.code!r})")
    return 1


def leave(cluster: Cluster | None, status: int, *, in_order: bool = False) -> None:
    """Ends one process of several; does nothing for a single process.

    Returns if this process is not connected to the others, since none of them then waits for it
    without noticing its end.

    Args:
        in_order: Whether all processes end in the same way.
    """
    distributed = sys.modules.get("mm1_jax.multihost.distributed")
    if cluster is None or distributed is None:
        return
    # A supervisor of all processes, such as srun, stops the others when the first ends. They must
    # still end with the same status.
    ignore_signals()
    if in_order:
        distributed.finish(status)
    else:
        distributed.leave(status)
