import subprocess
import sys
import time
from pathlib import Path

import pytest

from mm1_jax.train.guards.watchdog import Watchdog
from mm1_jax.train.logs.goodput import Goodput

_HANG = """
import sys, time
from pathlib import Path
from mm1_jax.train.logs.goodput import Goodput
from mm1_jax.train.guards.watchdog import Watchdog

def read_a_stuck_disk():
    time.sleep(60)

cfg = Watchdog.default_config().set(hang_seconds=1.0, abort=True)
goodput = Goodput(None)
with cfg.instantiate(output_dir=Path(sys.argv[1]), goodput=goodput) as watchdog:
    watchdog.progress(17)
    with goodput.measure("data_wait"):
        read_a_stuck_disk()
"""


def watchdog(folder, **fields):
    cfg = Watchdog.default_config().set(**fields)
    return cfg.instantiate(output_dir=folder, goodput=Goodput(None))


def test_a_hanging_host_reports_its_stack_and_ends(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", _HANG, str(tmp_path)], capture_output=True, text=True, timeout=50
    )
    assert result.returncode == 1
    assert "hangs: no progress for" in result.stderr
    assert "after step 17, in data_wait" in result.stderr
    assert "read_a_stuck_disk" in result.stderr


def test_a_running_loop_is_not_interrupted(tmp_path, capfd):
    with watchdog(tmp_path, hang_seconds=0.6) as each:
        for step in range(8):
            each.progress(step)
            time.sleep(0.2)
    assert "hangs" not in capfd.readouterr().err


def test_every_host_writes_a_status_line(tmp_path):
    path: Path = tmp_path / "hosts" / "process_00000.txt"
    with watchdog(tmp_path, status_every_n_seconds=0.05) as each:
        each.progress(3)
        deadline = time.monotonic() + 10
        while not path.exists() or "step 3" not in path.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert "start_up for" in path.read_text()
    assert path.read_text().endswith("step 3  ended\n")


def test_the_status_line_states_how_a_run_ended(tmp_path):
    with pytest.raises(RuntimeError), watchdog(tmp_path):
        raise RuntimeError
    assert "ended by RuntimeError" in (tmp_path / "hosts" / "process_00000.txt").read_text()
