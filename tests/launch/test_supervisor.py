import signal
import subprocess
import sys
import time

import pytest

from mm1_jax.launch import supervisor
from mm1_jax.launch.supervisor import supervise

# Appends a character to a file, and ends as the argument with that number says.
_CHILD = """
import os, signal, sys
path, *ends = sys.argv[1:]
with open(path, "a") as file:
    file.write("x")
end = ends[os.path.getsize(path) - 1]
os.kill(os.getpid(), signal.SIGKILL) if end == "kill" else sys.exit(int(end))
"""


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(supervisor, "_FIRST_PAUSE_SECONDS", 0.01)


@pytest.mark.parametrize(
    ("ends", "max_restarts", "status", "runs"),
    [
        (["kill", "1", "0"], 5, 0, 3),
        (["kill", "kill", "0"], 1, 137, 2),
        (["2", "0"], 5, 2, 1),
        (["143", "0"], 5, 143, 1),
        (["1", "3"], 5, 3, 2),
    ],
)
def test_only_crashed_runs_are_restarted(tmp_path, ends, max_restarts, status, runs):
    path = tmp_path / "runs"
    assert supervise([sys.executable, "-c", _CHILD, str(path), *ends], max_restarts) == status
    assert len(path.read_text()) == runs


def test_a_signal_is_forwarded_to_the_run(tmp_path):
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"open({str(tmp_path / 'up')!r}, 'w').close()\n"
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", code]
    outer = (
        "import sys\nfrom mm1_jax.launch.supervisor import supervise\n"
        f"sys.exit(supervise({command!r}, 3))"
    )
    process = subprocess.Popen([sys.executable, "-c", outer])
    while not (tmp_path / "up").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        # The signal itself ends a launch that has not reached its loop.
        ("open(path, 'w').close(); time.sleep(60)", 143),
        # Between two runs, the long pause ends immediately.
        ("open(path, 'w').close(); sys.exit(1)", 1),
    ],
)
def test_nothing_is_restarted_after_a_signal(tmp_path, run, expected):
    path = tmp_path / "up"
    code = f"import sys, time; path = {str(path)!r}; {run}"
    outer = (
        "import sys\n"
        "from mm1_jax.launch import supervisor\n"
        "supervisor._FIRST_PAUSE_SECONDS = 50\n"
        f"sys.exit(supervisor.supervise({[sys.executable, '-c', code]!r}, 3))"
    )
    process = subprocess.Popen([sys.executable, "-c", outer], stderr=subprocess.PIPE, text=True)
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.02)
    if expected == 1:
        assert "restart 1 of 3" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == expected
    process.stderr.close()
