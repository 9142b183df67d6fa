"""A study runs each cell once, whatever stops it and however many processes run it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mm1_jax.studies import cell_lock
from mm1_jax.studies.cell_lock import CellLock
from mm1_jax.studies.runner import core_groups
from mm1_jax.studies.study import Cell

ROOT = Path(__file__).parents[2]
ALL = {f"{run}/{seed}": 1 for run in ("one_view", "pretraining", "tiles") for seed in range(3)}


@pytest.mark.parametrize("jobs", [1, 3])
def test_every_cell_and_every_stage_runs_once(make_runner, study, results, starts, jobs):
    outcome = make_runner(jobs=jobs).run(study.cells())
    assert sorted(outcome.done) == sorted(study.cells())
    assert starts() == ALL
    rows = results.read()
    assert rows[Cell("tiles", 2)].metrics == {"boxes": 1.02, "both": 0.76}
    assert make_runner().run(study.cells()).done == []
    assert starts() == ALL


def test_a_fresh_clone_runs_the_cells_that_have_no_row(
    make_runner, study, results, starts, tmp_path
):
    make_runner().run(study.cells(seeds=[0, 1]))
    lines = results.path.read_text().splitlines(keepends=True)
    # The row of the last cell was not committed, and the clone has no run folders.
    results.path.write_text("".join(lines[:-1]))
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    before = starts()
    make_runner().run(study.cells())
    again = {name: count - before.get(name, 0) for name, count in starts().items()}
    assert {name for name, count in again.items() if count} == {
        *("pretraining/1", "tiles/1"),
        *("pretraining/2", "one_view/2", "tiles/2"),
    }
    assert results.path.read_text().startswith("".join(lines[:-1]))


def test_a_failed_launch_is_named_and_tried_again(make_runner, study, starts, tmp_path):
    (tmp_path / "broken").touch()
    outcome = make_runner().run(study.cells(seeds=[0]))
    assert len(outcome.failed) == 2 and "error: broken" in outcome.failed[0]
    (tmp_path / "broken").unlink()
    assert len(make_runner().run(study.cells(seeds=[0])).done) == 2


def test_two_runners_with_a_common_folder_never_run_a_cell_twice(make_runner, study, starts):
    runners = [make_runner(jobs=2) for _ in range(3)]
    threads = [threading.Thread(target=x.run, args=(study.cells(),)) for x in runners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert starts() == ALL


def test_the_same_index_on_two_machines_waits_and_runs_once(make_runner, study, starts):
    cells = [study.cells()[1]]
    outcomes = []

    def run() -> None:
        outcomes.append(make_runner().run(cells, waits=True))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome.failed for outcome in outcomes] == [[], []]
    assert starts() == {"pretraining/0": 1, "tiles/0": 1}


def test_a_run_that_is_laid_at_the_place_of_a_stage_is_launched_into(make_runner, study, tmp_path):
    """The launch checks its config and, if the run is complete, ends at once."""
    folder = tmp_path / "runs" / "stages" / "pretraining" / "0"
    folder.mkdir(parents=True)
    (folder / "weights").touch()
    make_runner().run(study.cells(seeds=[0]))
    assert (folder / "weights").exists() and (folder / "report.json").exists()


CHILD = """\
import signal, sys
from pathlib import Path
# A shell that starts tests in the background makes them ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv[2])
import conftest
from mm1_jax.studies import runner
from mm1_jax.studies.results import Results
folder = Path(sys.argv[1])
runner.LAUNCH = (sys.executable, "-S", str(folder / "launch.py"))
study = conftest.small_study()
results = Results(folder / "out" / "small.csv", study)
runner.Runner(study, results, folder / "runs").run(study.cells())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_study_continues(number, make_runner, study, results, starts, tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "STARTS": str(tmp_path / "starts"),
        "SECONDS_OF_A_RUN": "3",
    }
    here = str(Path(__file__).parent)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), here], env=environment, cwd=ROOT
    )
    while len(starts()) < 2 and child.poll() is None:
        time.sleep(0.05)
    child.send_signal(number)
    assert child.wait() != 0
    lock = CellLock(tmp_path / "runs" / "small" / "one_view" / "0.lock")
    if number is signal.SIGKILL:
        # Its launch still runs, and holds the lock until it ends.
        assert not lock.acquire()
    outcome = make_runner().run(study.cells(), waits=True)
    assert not outcome.failed and results.read().keys() == set(study.cells())


def test_a_lock_of_a_dead_machine_is_taken_over_by_one(tmp_path, monkeypatch):
    path = tmp_path / "0.lock"
    path.write_text('{"host": "gone", "machine": "gone", "pid": 1}')
    locks = [CellLock(path) for _ in range(8)]
    assert not locks[0].acquire() and "process 1 on gone" in locks[0].holder()
    then = time.time() - 700
    os.utime(path, (then, then))
    taken: list[bool] = []
    threads = [threading.Thread(target=lambda x=x: taken.append(x.acquire())) for x in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 1
    for lock in locks:
        lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_held_lock_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(cell_lock, "TOUCH_SECONDS", 0.02)
    lock = CellLock(tmp_path / "0.lock")
    assert lock.acquire()
    os.utime(lock.path, (0, 0))
    end = time.monotonic() + 5
    while lock.path.stat().st_mtime == 0 and time.monotonic() < end:
        time.sleep(0.02)
    assert lock.path.stat().st_mtime > 0
    lock.release()
    assert not lock.path.exists()


def test_jobs_get_equal_parts_of_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert core_groups(1) == [set(range(8))]
    assert core_groups(3) == [{0, 1}, {2, 3, 4}, {5, 6, 7}]
    assert core_groups(10)[7:] == [{7}, {0}, {1}]
