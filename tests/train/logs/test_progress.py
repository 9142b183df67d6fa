import io
import re
import sys

import pytest

from mm1_jax.train.logs.progress import Progress, print_line

RECORD = {"loss": 1.25, "tokens_per_second": 4321.0, "images_per_second": 33.0, "step_seconds": 2.0}


def follow(first_step, max_steps, every_n_seconds):
    progress = (
        Progress.default_config()
        .set(every_n_seconds=every_n_seconds)
        .instantiate(max_steps=max_steps, first_step=first_step)
    )
    for step in range(first_step + 1, max_steps + 1):
        progress.step(step, RECORD)
    progress.message("done")
    progress.close()


def test_a_file_gets_occasional_lines(capsys):
    follow(100, 200, every_n_seconds=1e9)
    lines = capsys.readouterr().out.splitlines()
    assert [re.match(r"step (\d+)/200", line)[1] for line in lines[:-1]] == [
        *("101", "102", "105", "110", "200")
    ]
    assert lines[0] == "step 101/200  loss 1.2500  tokens/s 4,321  images/s 33  remaining 0:03:18"
    assert lines[-1] == "done"


def test_a_file_gets_every_line_that_is_due(capsys):
    follow(0, 30, every_n_seconds=1e-9)
    assert len(capsys.readouterr().out.splitlines()) == 31


def test_a_terminal_gets_a_progress_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    follow(1, 3, every_n_seconds=5)
    printed = capsys.readouterr()
    assert "3/3" in printed.err and "loss=1.2500" in printed.err
    assert printed.out.strip() == "done"


@pytest.mark.parametrize("first_step", [0, 5])
def test_the_last_step_always_has_a_line(capsys, first_step):
    follow(first_step, 8, every_n_seconds=1e9)
    assert "step 8/8" in capsys.readouterr().out


def test_a_line_that_cannot_be_written_is_retried_with_the_next(monkeypatch):
    class Disk(io.RawIOBase):
        is_full, content = True, b""

        def writable(self):
            return True

        def write(self, data):
            if self.is_full:
                raise OSError(28, "No space left on device")
            self.content += bytes(data)
            return len(data)

    disk = Disk()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(disk)))
    print_line("first")
    disk.is_full = False
    print_line("second")
    assert disk.content == b"first\nsecond\n"
