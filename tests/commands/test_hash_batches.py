import signal
import subprocess
import sys
from pathlib import Path

import pytest
from drawn_corpus import input_config

from mm1_jax.commands import hash_batches as tool

ARGUMENTS = ("--module=drawn_experiment", "--config=drawn")


def _input(**fields):
    # Groups of four rows have fewer slots than images; hosts of one or two rows share a group.
    return input_config(image_group_rows=4, images_per_row=3, **fields).instantiate()


def _lines(input, steps: range, num_hosts: int = 1, **options) -> list[str]:
    return [f"{step} {digest}" for step, digest in tool.hashes(input, steps, num_hosts, **options)]


@pytest.fixture(scope="module")
def expected():
    """The lines of twelve steps on one host without workers."""
    lines = _lines(_input(), range(12))
    assert [int(line.split()[0]) for line in lines] == list(range(12))
    assert len({line.split()[1] for line in lines}) == 12
    return lines


@pytest.mark.parametrize(("num_hosts", "num_workers"), [(1, 2), (2, 0), (4, 0), (8, 0)])
def test_hosts_and_workers_do_not_change_the_hashes(expected, num_hosts, num_workers):
    assert _lines(_input(num_workers=num_workers), range(12), num_hosts) == expected


def test_steps_before_the_first_are_skipped_without_loading(expected):
    assert _lines(_input(), range(9, 12), num_hosts=2) == expected[9:]


def test_another_seed_changes_the_hashes(expected):
    assert _lines(_input(seed=1), range(1)) != expected[:1]


@pytest.fixture
def named(monkeypatch):
    """Makes the experiment importable by name, here and in other processes."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "data"))


def test_hashes_resume_on_other_hosts_after_a_kill(named, tmp_path, capsys):
    state = tmp_path / "state.json"
    command = [sys.executable, "-m", "mm1_jax", "hash_batches", *ARGUMENTS]
    process = subprocess.Popen(
        [*command, "--steps=0:100000", "--hosts=4", f"--state={state}"],
        stdout=subprocess.PIPE,
        text=True,
    )
    first = [process.stdout.readline().strip() for _ in range(4)]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert tool.main([*ARGUMENTS, "--steps=0:60"]) == 0
    expected = capsys.readouterr().out.splitlines()
    assert first == expected[:4]
    # The kill may come at any later moment, even between a line and the state after it.
    assert tool.main([*ARGUMENTS, "--steps=0:60", "--hosts=2", f"--state={state}"]) == 0
    rest = capsys.readouterr().out.splitlines()
    assert rest == expected[60 - len(rest) :] and 0 < len(rest) <= 60 - 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--hosts=3",), "--hosts=3: must divide input.batch_size=8"),
        (("--config=drawm",), "did you mean drawn"),
    ],
)
def test_errors_are_one_line(named, capsys, arguments, message):
    assert tool.main([*ARGUMENTS, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


@pytest.mark.parametrize("steps", ["5:5", "x", "-1:3"])
def test_invalid_steps_are_rejected(capsys, steps):
    with pytest.raises(SystemExit):
        tool.parse(["--config=drawn", f"--steps={steps}"])
    assert steps in capsys.readouterr().err
