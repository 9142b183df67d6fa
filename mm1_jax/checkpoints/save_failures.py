"""Failed saves: the error, its one-line reason, and suppression of Orbax tracebacks."""

from pathlib import Path
from typing import Any

from absl import logging

from mm1_jax.checkpoints.commit_barrier import OutOfStep

_MAX_CHARACTERS = 240


class SaveFailed(RuntimeError):
    """Raised when a checkpoint could not be written."""

    def __init__(self, step: int, reason: str):
        super().__init__(f"step {step} could not be saved ({reason})")


def reason_of(error: BaseException) -> str:
    """Returns the class and the first line of an error."""
    # If a process is out of step, the actual failure is the error before that.
    while isinstance(error, OutOfStep) and error.__context__ is not None:
        error = error.__context__
    line = str(error).strip().partition("\n")[0]
    if len(line) > _MAX_CHARACTERS:
        # The message starts with file names and ends with the cause given by the operating system.
        half = _MAX_CHARACTERS // 2
        line = f"{line[:half]} ... {line[-half:]}"
    return f"{type(error).__name__}: {line}"


def log_tracebacks_only_if_verbose() -> None:
    """Suppresses the tracebacks that Orbax threads log for a failed save; we report it ourselves.

    They are shown with --verbosity=1.
    """
    logging.get_absl_logger().addFilter(_is_logged)


def _is_logged(record: Any) -> bool:
    is_orbax = "orbax" in Path(record.pathname).parts
    return not (is_orbax and record.exc_info) or logging.level_debug()
