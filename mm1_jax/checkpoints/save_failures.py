"""Saves that fail: the error, its reason in one line, and what orbax logs of it."""

from pathlib import Path
from typing import Any

from absl import logging

from mm1_jax.checkpoints.commit_barrier import OutOfStep

_MOST_CHARACTERS = 240


class SaveFailed(RuntimeError):
    """A checkpoint could not be written."""

    def __init__(self, step: int, reason: str):
        super().__init__(f"step {step} could not be saved ({reason})")


def reason_of(error: BaseException) -> str:
    """Class and first line of an error."""
    # A process that is out of step failed by the error before that.
    while isinstance(error, OutOfStep) and error.__context__ is not None:
        error = error.__context__
    line = str(error).strip().partition("\n")[0]
    if len(line) > _MOST_CHARACTERS:
        # Files come first, and the cause of the operating system last.
        half = _MOST_CHARACTERS // 2
        line = f"{line[:half]} ... {line[-half:]}"
    return f"{type(error).__name__}: {line}"


def log_tracebacks_only_if_verbose() -> None:
    """Leaves out the tracebacks that each thread of orbax logs of a failed save, which is reported.

    They are there with --verbosity=1.
    """
    logging.get_absl_logger().addFilter(_is_logged)


def _is_logged(record: Any) -> bool:
    is_orbax = "orbax" in Path(record.pathname).parts
    return not (is_orbax and record.exc_info) or logging.level_debug()
