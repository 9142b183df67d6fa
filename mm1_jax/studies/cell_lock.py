"""Lock files that several machines with a common folder respect.

A lock is a file that names its owner. The owner touches it every few seconds, so that a lock of a
machine that died is recognized by its age. On the same machine, an owner that has ended is
recognized at once. All ages are differences of times of the file system itself, because clocks of
machines differ.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOUCH_SECONDS = 20.0
# A lock of another machine is stale if it was not touched for this long.
STALE_SECONDS = 600.0


class CellLock:
    """A lock file; `acquire` takes it if nobody that is alive holds it."""

    def __init__(self, path: Path):
        self.path = path
        self._owner: dict[str, Any] = {}
        self._released = threading.Event()

    def acquire(self) -> bool:
        """Takes the lock; returns False if another holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._create() and not (self._is_stale() and self._take_over()):
            return False
        self._released.clear()
        threading.Thread(target=self._touch, daemon=True).start()
        return True

    def release(self) -> None:
        self._released.set()
        with contextlib.suppress(OSError):
            if _owner(self.path).get("token") == self._owner.get("token"):
                self.path.unlink()

    def set_child(self, pid: int) -> None:
        """Names a child process, which keeps the lock if this process is killed."""
        self._owner["child"] = _process(pid)
        self.path.write_text(json.dumps(self._owner))

    def holder(self) -> str:
        """Describes the owner, for messages."""
        owner = _owner(self.path)
        return f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'an unknown host')}"

    def _create(self) -> bool:
        self._owner = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "process": _process(os.getpid()),
            "token": uuid.uuid4().hex,
        }
        try:
            with self.path.open("x") as file:
                file.write(json.dumps(self._owner))
        except FileExistsError:
            return False
        return True

    def _is_stale(self) -> bool:
        owner = _owner(self.path)
        if owner.get("machine") == _machine():
            processes = (owner.get("process"), owner.get("child"))
            return not any(x and _process(int(x.partition("@")[0])) == x for x in processes)
        return _age(self.path) > STALE_SECONDS

    def _take_over(self) -> bool:
        """Replaces a stale lock; a guard file lets only one process do so at a time."""
        guard = self.path.with_name(self.path.name + ".takeover")
        try:
            guard.open("x").close()
        except FileExistsError:
            if _age(guard) > STALE_SECONDS:
                guard.unlink(missing_ok=True)
            return False
        try:
            if self.path.exists() and not self._is_stale():
                return False
            self.path.unlink(missing_ok=True)
            return self._create()
        finally:
            guard.unlink(missing_ok=True)

    def _touch(self) -> None:
        while not self._released.wait(TOUCH_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self.path)


@contextlib.contextmanager
def waiting_lock(path: Path, seconds: float = 0.05) -> Iterator[None]:
    """Context in which this process holds a lock, for which it waits."""
    lock = CellLock(path)
    while not lock.acquire():
        time.sleep(seconds)
    try:
        yield
    finally:
        lock.release()


def _owner(path: Path) -> dict[str, Any]:
    """Returns the owner; {} if the file is missing or not written yet."""
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _age(path: Path) -> float:
    """Returns the seconds since a file was touched, by the clock of its file system."""
    now = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        now.touch()
        return now.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        now.unlink(missing_ok=True)


def _machine() -> str:
    """Returns a name within which process ids are unique: host, boot and container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _process(pid: int) -> str | None:
    """Returns the id and the start of a process, because ids are used again; None if it ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if stat[0] == "Z" else f"{pid}@{stat[19]}"
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return f"{pid}@"
