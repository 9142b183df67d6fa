"""Exit codes of commands, and failures that are reported in one line instead of a traceback.

    2         the command line, a config or a file has to be changed
    130, 143  stopped by SIGINT (Ctrl-C) or SIGTERM
    141       the reader of the output has closed it, as in `| head`

A script calls `end_on_signals` before imports that take seconds, and decorates its `main` with
`command`.
"""

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import PurePath
from types import FrameType
from typing import Any

from mm1_jax.platforms import prefer_cpu

USER_ERROR = 2
OUTPUT_CLOSED = 128 + signal.SIGPIPE
# Also the name of the console script.
_PACKAGE = "mm1_jax"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Functions called by the garbage collector, which discards their exceptions.
_CALLBACKS = ("_xla_gc_callback", "__del__")
_LATER_SECONDS = 0.01


class Stopped(KeyboardInterrupt):
    """Raised on SIGINT or SIGTERM. Its notes are added to the line that is printed."""

    def __init__(self, number: int = signal.SIGINT):
        super().__init__(number)
        self.number = signal.Signals(number)


def stop_status(stop: KeyboardInterrupt) -> int:
    """Prints the line of a process that was stopped, and returns its exit status."""
    number = getattr(stop, "number", signal.SIGINT)
    complain("; ".join([f"stopped by {number.name}", *getattr(stop, "__notes__", [])]))
    return 128 + number


def complain(line: str) -> None:
    """Prints a line to stderr, which may be closed."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def end_on_signals() -> None:
    """Makes SIGINT and SIGTERM end the process at once with one line, until a command runs."""
    for number in _SIGNALS:
        signal.signal(number, _end)


def ignore_signals() -> None:
    """Ignores SIGINT and SIGTERM, at the end of a process whose exit status is settled."""
    # Only the main thread may set handlers.
    with contextlib.suppress(ValueError):
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def started_as(name: str) -> str:
    """Returns how the user started the command `name`, for its usage line and examples."""
    script = PurePath(sys.argv[0])
    if script.name == f"{name}.py":
        return f"python {script}"
    if script.name == _PACKAGE:
        return f"{_PACKAGE} {name}"
    if script.parts[-2:] == (name, "__main__.py"):
        return f"python -m {_PACKAGE}.{name}"
    return f"python -m {_PACKAGE} {name}"


def command(main: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
    """Decorates a `main` so that ValueError and OSError are reported as errors of the user."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        return status_of(lambda: main(argv), errors=(ValueError, OSError))

    return run


def status_of(action: Callable[[], int], *, errors: tuple[type[Exception], ...]) -> int:
    """Runs a command and returns its exit status.

    Args:
        errors: Exceptions reported by their text alone; others keep their traceback.
    """
    if is_script := signal.getsignal(signal.SIGINT) is _end:
        for number in _SIGNALS:
            signal.signal(number, _raise)
        prefer_cpu()
    try:
        try:
            return action()
        finally:
            # If this failed at the exit of the interpreter, a traceback would be printed.
            sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OUTPUT_CLOSED
    except errors as error:
        complain("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]))
        return USER_ERROR
    except KeyboardInterrupt as stop:
        return stop_status(stop)
    finally:
        if is_script:
            end_on_signals()


def _end(number: int, frame: FrameType | None) -> Any:
    _leave_children_alone(number)
    with contextlib.suppress(OSError):
        os.write(2, f"stopped by {signal.Signals(number).name}\n".encode())
    os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> Any:
    """Unwinds the command, unless an exception raised here would be lost or abort the process."""
    _leave_children_alone(number)
    while frame is not None:
        # An import has nothing to unwind, and runs callbacks that may swallow the exception.
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _end(number, frame)
        if frame.f_code.co_name in _CALLBACKS:
            signal.signal(signal.SIGALRM, lambda _, frame: _raise(number, frame))
            signal.setitimer(signal.ITIMER_REAL, _LATER_SECONDS)
            return
        frame = frame.f_back
    raise Stopped(number)


def _leave_children_alone(number: int) -> None:
    """Ends a fork of this process, such as a data worker, as if there were no handler."""
    if os.getpid() != _PROCESS:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


_PROCESS = os.getpid()
