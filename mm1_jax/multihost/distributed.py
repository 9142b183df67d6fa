"""Communication between the processes of a run: errors, decisions, states.

All messages go through the key-value store of the coordinator (process 0), none over the devices.
So they work while devices are busy, and a process that waits knows which peer is late. Every
process must make the same calls in the same order. With one process, all calls return at once.
"""

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging
from jax._src import distributed as jax_distributed
from jax._src import xla_bridge

# How long processes wait for a value of a process that still sends heartbeats: compilation or the
# reading of lengths may delay it.
_PATIENCE_SECONDS = 1800.0

# Seconds for which a failed process 0 waits for others to fail for the same reason.
_LINGER_SECONDS = 5.0
_GRACE_SECONDS = 1.0

# Python's signal handlers do not run during a wait in C++, only between two of them.
_SIGNAL_SECONDS = 1.0

_calls = itertools.count()


def initialize(cluster: Any, *, initialization_timeout: int, heartbeat_timeout: int) -> None:
    """Connects this process to the cluster; must precede any other use of jax.

    Args:
        cluster: A `cluster.Cluster` whose processes have met (`rendezvous.meet`).
        initialization_timeout: Seconds within which the service must start.
        heartbeat_timeout: Seconds without a heartbeat after which a process counts as dead, which
            ends all others.
    """
    # Its C++ handler of SIGTERM would replace ours, which also handles SIGINT.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        cluster.coordinator_address,
        cluster.num_processes,
        cluster.process_id,
        local_device_ids=cluster.local_device_ids,
        cluster_detection_method="deactivate",
        # None: all interfaces.
        coordinator_bind_address=(
            None if cluster.bind_host is None else f"{cluster.bind_host}:{cluster.port}"
        ),
        initialization_timeout=initialization_timeout,
        heartbeat_timeout_seconds=heartbeat_timeout,
        # Failed processes do not shut down, but `leave`.
        shutdown_timeout_seconds=heartbeat_timeout,
    )


def uses_devices() -> bool:
    """Returns whether jax has been asked for devices, after which `initialize` comes too late."""
    # jax has no public function for this.
    return xla_bridge.backends_are_initialized()


def start_devices() -> None:
    """Initializes the devices of all processes; every process must call it."""
    jax.devices()


def process_count() -> int:
    """Returns the number of processes; unlike `jax.process_count`, initializes no device."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def process_index() -> int:
    """Returns the index of this process."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def is_first() -> bool:
    """Returns whether this is process 0, which writes logs and reports."""
    return process_index() == 0


def gather(value: Any, *, patience: float = _PATIENCE_SECONDS) -> list[Any] | None:
    """Returns the values of all processes, in order, on process 0; returns None at once on others.

    Values have JSON types.

    Args:
        patience: Seconds to wait for the value of another process.

    Raises:
        RuntimeError: A value did not arrive in time.
    """
    number = next(_calls)
    if process_count() == 1:
        return [value]
    if not is_first():
        _set(f"gather/{number}/{process_index()}", value)
        return None
    others = range(1, process_count())
    values = [value, *(_get(f"gather/{number}/{each}", each, patience) for each in others)]
    _client().key_value_delete(f"mm1/gather/{number}/")
    return values


def broadcast(value: Any, *, patience: float = _PATIENCE_SECONDS) -> Any:
    """Returns the value of process 0 (of JSON types) on every process; the others wait for it."""
    number = next(_calls)
    if process_count() == 1:
        return value
    if is_first():
        _set(f"broadcast/{number}", value)
        return value
    return _get(f"broadcast/{number}", 0, patience)


def exchange(value: Any, *, patience: float = _PATIENCE_SECONDS) -> list[Any]:
    """Returns the values of all processes (of JSON types), in order, on every process."""
    return broadcast(gather(value, patience=patience), patience=patience)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Raises in all processes if the block raises ValueError or OSError in any of them.

    Otherwise the other processes would wait for the failed one at their next exchange.
    """
    error: Exception | None = None
    try:
        yield
    except (ValueError, OSError) as raised:
        error = raised
    reasons = exchange(None if error is None else str(error))
    if error is not None:
        raise error
    for process, reason in enumerate(reasons):
        if reason is not None:
            raise ValueError(f"process {process}: {reason}")


def leave(status: int) -> None:
    """Ends this process after a failure, if the run has several.

    `sys.exit` would wait for all other processes. But once process 0 ends, so does the coordinator
    service, and processes that lose it are aborted. In case all processes fail for the same reason,
    process 0 therefore stays for some seconds until the others have left.
    """
    if process_count() == 1:
        return
    logging.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    if is_first():
        _wait_for_departures(time.monotonic() + _LINGER_SECONDS)
    else:
        set_once(f"left/{process_index()}", status)
    os._exit(status)


def _wait_for_departures(deadline: float) -> None:
    """Waits until all other processes have left, or until the deadline."""
    for process in range(1, process_count()):
        try:
            _get(f"left/{process}", process, max(0.001, deadline - time.monotonic()))
        except RuntimeError:
            return
    # They have announced their end, but may still run.
    time.sleep(_GRACE_SECONDS)


def finish(status: int) -> None:
    """Ends this process after all others have reached their end too, if the run has several.

    Does not wait for threads that still wait for a peer in an abandoned save.
    """
    if process_count() == 1:
        return
    jax.distributed.shutdown()
    logging.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def set_once(key: str, value: Any) -> None:
    """Sets a key of the coordinator's key-value store, unless it is already set."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _set(key, value)


def get_if_set(key: str) -> Any:
    """Returns the value that `set_once` has set for a key; None if there is none."""
    try:
        return json.loads(_client().key_value_try_get(f"mm1/{key}"))
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return None


def wait_for(key: str, process: int, patience: float = _PATIENCE_SECONDS) -> Any:
    """Waits for a process to set a key with `set_once`, and returns the value.

    Raises:
        RuntimeError: The key was not set within `patience` seconds.
    """
    return _get(key, process, patience)


def _set(key: str, value: Any) -> None:
    _client().key_value_set(f"mm1/{key}", json.dumps(value))


def _get(key: str, process: int, patience: float) -> Any:
    deadline = time.monotonic() + patience
    while True:
        left = max(0.001, min(deadline - time.monotonic(), _SIGNAL_SECONDS))
        try:
            return json.loads(_client().blocking_key_value_get(f"mm1/{key}", int(left * 1000)))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error) and time.monotonic() < deadline:
                continue
            raise RuntimeError(
                f"process {process_index()} waited {patience:g} s for process {process}, or "
                f"lost the connection ({error})"
            ) from error


def _client() -> Any:
    # jax has no public function for this; orbax reads it from here, too.
    return jax_distributed.global_state.client
