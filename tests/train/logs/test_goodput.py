import json

import pytest

from mm1_jax.train.logs import goodput as module
from mm1_jax.train.logs.goodput import PHASES, Goodput


class Clock:
    """A monotonic clock, and a wall clock that may be set."""

    def __init__(self):
        self.now = 1000.0
        self.set_by = 0.0

    def monotonic(self):
        return self.now

    def time(self):
        return 1e9 + self.now + self.set_by


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "_process_age", lambda: 0.0)
    return clock


def run(clock, folder, first_step, steps, save_at=None):
    """A launch with 5 s of start-up, 1 s per step (0.25 s waiting for data), and 2 s per save."""
    goodput = Goodput(folder)
    clock.now += 5
    goodput.begin(first_step)
    for step in range(first_step, first_step + steps):
        with goodput.measure("data_wait"):
            clock.now += 0.25
        clock.now += 0.75
        goodput.step(step + 1)
        if step + 1 == save_at:
            with goodput.measure("checkpoint"):
                clock.now += 2
            goodput.saved(step + 1)
    goodput.write()
    return goodput


def test_every_moment_belongs_to_one_phase(clock, tmp_path):
    totals = run(clock, tmp_path, 0, 8, save_at=4).totals()
    assert totals["start_up_seconds"] == 5
    assert totals["data_wait_seconds"] == 2
    assert totals["checkpoint_seconds"] == 2
    assert totals["step_seconds"] == 6
    assert sum(totals[f"{phase}_seconds"] for phase in PHASES) == totals["elapsed_seconds"] == 15
    assert totals["goodput"] == 6 / 15


def test_repeated_steps_and_the_time_between_launches_count_as_lost(clock, tmp_path):
    run(clock, tmp_path, 0, 8, save_at=4)
    clock.now += 100
    totals = run(clock, tmp_path, 4, 6).totals()
    assert totals["down_seconds"] == 100
    # Steps 5 to 8 of the first launch are lost.
    assert totals["lost_step_seconds"] == pytest.approx(3)
    assert totals["step_seconds"] == pytest.approx(6 + 4.5 - 3)
    assert totals["launches"] == 2
    assert totals["elapsed_seconds"] == 15 + 100 + 11
    stored = json.loads((tmp_path / "goodput.json").read_text())["totals"]
    assert stored == totals


def test_a_launch_without_a_save_is_lost_entirely(clock, tmp_path):
    run(clock, tmp_path, 0, 4)
    totals = run(clock, tmp_path, 0, 4).totals()
    assert totals["lost_step_seconds"] == pytest.approx(3)


def test_a_rollback_loses_the_steps_since_the_checkpoint(clock, tmp_path):
    goodput = run(clock, tmp_path, 0, 8, save_at=4)
    goodput.rolled_back(4)
    assert goodput.totals()["lost_step_seconds"] == pytest.approx(3)
    # A second rollback to the same checkpoint, with no step in between, loses nothing more.
    goodput.rolled_back(4)
    assert goodput.totals()["lost_step_seconds"] == pytest.approx(3)


def test_setting_the_clock_during_a_launch_changes_nothing(clock, tmp_path):
    goodput = Goodput(tmp_path)
    clock.now += 5
    goodput.begin(0)
    for step, set_by in enumerate((0, -3600, 7200)):
        clock.set_by = set_by
        clock.now += 2
        goodput.step(step + 1)
        assert goodput.phase == ("step", 2.0 * (step + 1))
    totals = goodput.totals()
    assert (totals["elapsed_seconds"], totals["step_seconds"]) == (11, 6)
    assert totals["goodput"] == 6 / 11


def test_setting_the_clock_back_between_launches_loses_no_time(clock, tmp_path):
    run(clock, tmp_path, 0, 8, save_at=8)
    clock.now += 100
    clock.set_by = -5000
    totals = run(clock, tmp_path, 8, 4).totals()
    # The down time is unknown, and must not be negative.
    assert totals["down_seconds"] == 0
    assert totals["elapsed_seconds"] == pytest.approx(15 + 9)
    assert totals["goodput"] == pytest.approx((6 + 3) / (15 + 9))
    # The next launch counts from there.
    clock.now += 10
    assert run(clock, tmp_path, 12, 1).totals()["goodput"] < 1


def test_goodput_is_at_most_one_for_old_files_with_a_clock_set_back(clock, tmp_path):
    run(clock, tmp_path, 0, 8)
    path = tmp_path / "goodput.json"
    content = json.loads(path.read_text())
    content["launches"][0]["end"] = content["launches"][0]["start"] - 3600
    path.write_text(json.dumps(content))
    totals = run(clock, tmp_path, 8, 4).totals()
    assert 0 < totals["goodput"] <= 1


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "null", "\x00", '{"launches": 1}', '{"launches": [{"start": 1}]}']
    + ['{"launches": [null]}'],
)
def test_a_damaged_file_is_named_and_replaced(clock, tmp_path, text, caplog):
    (tmp_path / "goodput.json").write_text(text)
    assert run(clock, tmp_path, 0, 2).totals()["launches"] == 1
    assert (tmp_path / "goodput.json.damaged").read_text() == text
    assert str(tmp_path / "goodput.json") in caplog.text
    assert json.loads((tmp_path / "goodput.json").read_text())["totals"]["launches"] == 1


def test_a_file_written_by_a_launch_is_valid(clock, tmp_path, caplog):
    run(clock, tmp_path, 0, 2)
    assert run(clock, tmp_path, 2, 4).totals()["launches"] == 2
    assert caplog.text == ""
