"""What the processes of a run tell each other: errors, decisions, states.

All of it goes through the key-value store that process 0 serves, and none over the devices: it
works while the devices are busy, and where a process is late, its peers know for whom they wait.
Every process has to make the same calls in the same order. With one process, all calls return at
once.
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

# Where a heartbeat says that a process lives, the others wait this long for its word: a compilation
# or the reading of lengths may hold it up.
_PATIENCE_SECONDS = 1800.0

# So much later than process 0 may others find what has ended it.
_LINGER_SECONDS = 5.0
_GRACE_SECONDS = 1.0

# A wait in C++ knows nothing of signals; between two such waits, their handlers run.
_SIGNAL_SECONDS = 1.0

_calls = itertools.count()


def initialize(cluster: Any, *, initialization_timeout: int, heartbeat_timeout: int) -> None:
    """Makes this process one of the cluster's; before any other use of jax.

    Args:
        cluster: A `cluster.Cluster` whose processes have met (`rendezvous.meet`).
        initialization_timeout: Seconds that starting the service may take.
        heartbeat_timeout: Seconds without a sign of life after which a process counts as dead,
            which ends all others.
    """
    # Its C++ handler of SIGTERM would take the place of ours, which knows of SIGINT too.
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
        # A process that has failed does not wait for others, see `leave`.
        shutdown_timeout_seconds=heartbeat_timeout,
    )


def uses_devices() -> bool:
    """Tells if jax has been asked for devices, after which `initialize` comes too late."""
    # No public function of jax says so.
    return jax._src.xla_bridge.backends_are_initialized()


def start_devices() -> None:
    """Makes the devices of all processes known to each; all have to come to it."""
    jax.devices()


def process_count() -> int:
    """How many processes make up the run; asks no device, as jax's function does."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def process_index() -> int:
    """The number of this one among them."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that writes logs and reports."""
    return process_index() == 0


def gather(value: Any, *, patience: float = _PATIENCE_SECONDS) -> list[Any] | None:
    """Process 0 gets the value of each process, in order; the others None, without waiting.

    Values are of JSON types.

    Args:
        patience: Seconds to wait for the value of another process.

    Raises:
        RuntimeError: One did not come.
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
    """What process 0 passes, in JSON types; the others wait for it."""
    number = next(_calls)
    if process_count() == 1:
        return value
    if is_first():
        _set(f"broadcast/{number}", value)
        return value
    return _get(f"broadcast/{number}", 0, patience)


def exchange(value: Any, *, patience: float = _PATIENCE_SECONDS) -> list[Any]:
    """The value of each process, in order, in JSON types."""
    return broadcast(gather(value, patience=patience), patience=patience)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """If the block fails in one process with an error of its user, it fails in all of them.

    Left alone, the others would wait for it where they first need it.
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
    """Ends a process of several, where it has failed.

    The orderly way, which `sys.exit` takes, waits for all others. But with process 0 goes the
    service that they talk through, and who loses it is aborted: where all fail for one reason, it
    stays until the others have come to it, too.
    """
    if process_count() == 1:
        return
    logging.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    if is_first():
        _see_off(time.monotonic() + _LINGER_SECONDS)
    else:
        post(f"left/{process_index()}", status)
    os._exit(status)


def _see_off(deadline: float) -> None:
    """Returns when all others have left, or at the deadline."""
    for process in range(1, process_count()):
        try:
            _get(f"left/{process}", process, max(0.001, deadline - time.monotonic()))
        except RuntimeError:
            return
    # They have said so, and are about to end.
    time.sleep(_GRACE_SECONDS)


def finish(status: int) -> None:
    """Ends a process of several in order: after all others have come to their end, too.

    Threads that still wait for a peer, at a save that was given up, are not waited for.
    """
    if process_count() == 1:
        return
    jax.distributed.shutdown()
    logging.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def post(key: str, value: Any) -> None:
    """Writes a key that only the first to write it sets."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _set(key, value)


def look(key: str) -> Any:
    """What `post` has set there; None if nothing."""
    try:
        return json.loads(_client().key_value_try_get(f"mm1/{key}"))
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return None


def wait_for(key: str, process: int, patience: float = _PATIENCE_SECONDS) -> Any:
    """What a process sets there with `post`.

    Raises:
        RuntimeError: It has not, within `patience` seconds.
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
    # No public function of jax gives it; orbax takes it from here, too.
    return jax._src.distributed.global_state.client
