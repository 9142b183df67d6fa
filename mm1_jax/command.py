"""Frame of all commands: which failures are one line in place of a traceback, and their exit codes.

    2         the command line, a config or a file has to be changed
    130, 143  stopped by SIGINT (Ctrl-C) or SIGTERM
    141       the reader of the output is gone, as with `| head`

A script calls `end_on_signals` before the imports that take seconds, and decorates its `main`.
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

USER_ERROR = 2
OUTPUT_CLOSED = 128 + signal.SIGPIPE
# Also the name of the console script.
_PACKAGE = "mm1_jax"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Functions of the garbage collector, from which no exception comes out.
_CALLBACKS = ("_xla_gc_callback", "__del__")
_LATER_SECONDS = 0.01


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM came. Notes on it are added to its line."""

    def __init__(self, number: int = signal.SIGINT):
        super().__init__(number)
        self.number = signal.Signals(number)


def stop_status(stop: KeyboardInterrupt) -> int:
    """Prints the line of a process that was stopped; its exit status."""
    number = getattr(stop, "number", signal.SIGINT)
    complain("; ".join([f"stopped by {number.name}", *getattr(stop, "__notes__", [])]))
    return 128 + number


def complain(line: str) -> None:
    """Prints to stderr, which may be closed."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def end_on_signals() -> None:
    """A signal ends the process at once, in one line, until a command runs."""
    for number in _SIGNALS:
        signal.signal(number, _end)


def ignore_signals() -> None:
    """For the end of a process whose exit status is settled."""
    # Only the main thread may.
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
    """A `main` of which ValueError and OSError are errors of the user."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        return status_of(lambda: main(argv), errors=(ValueError, OSError))

    return run


def status_of(action: Callable[[], int], *, errors: tuple[type[Exception], ...]) -> int:
    """Exit status of a command.

    Args:
        errors: Those whose text is all that a user needs; others keep their traceback.
    """
    if is_script := signal.getsignal(signal.SIGINT) is _end:
        for number in _SIGNALS:
            signal.signal(number, _raise)
    try:
        try:
            return action()
        finally:
            # Here, and not when the interpreter ends, which prints a traceback.
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
    """Unwinds the command, but not where an exception would be printed and lost, or abort."""
    _leave_children_alone(number)
    while frame is not None:
        # An import has nothing to unwind, and callbacks in Python and in C++.
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _end(number, frame)
        if frame.f_code.co_name in _CALLBACKS:
            signal.signal(signal.SIGALRM, lambda _, frame: _raise(number, frame))
            signal.setitimer(signal.ITIMER_REAL, _LATER_SECONDS)
            return
        frame = frame.f_back
    raise Stopped(number)


def _leave_children_alone(number: int) -> None:
    """A fork of this process, as a data worker may be, ends as if there were no handler."""
    if os.getpid() != _PROCESS:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


_PROCESS = os.getpid()
