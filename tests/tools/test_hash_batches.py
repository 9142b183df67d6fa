import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "hash_batches.py"
_spec = importlib.util.spec_from_file_location("hash_batches_tool", TOOL)
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)

# Groups of four rows with fewer slots than images: hosts of two rows share a group.
CONFIG = (
    "--config=mm1_tiny",
    "--config.input.image_group_rows=4",
    "--config.input.images_per_row=12",
)


@pytest.fixture(scope="module")
def config():
    overrides = tool.split_overrides(CONFIG)[1]
    return tool.Launch("mm1_tiny", "experiments.pretrain", overrides).resolved_config().input


@pytest.fixture(scope="module")
def input(config):
    return config.instantiate()


def _lines(input, steps: range, **options) -> list[str]:
    options = {"num_hosts": 1, **options}
    return [f"{step} {digest}" for step, digest in tool.hashes(input, steps, **options)]


@pytest.fixture(scope="module")
def expected(input):
    """The lines of six steps, of one host without workers."""
    lines = _lines(input, range(6))
    assert [line.split()[0] for line in lines] == ["0", "1", "2", "3", "4", "5"]
    assert len({line.split()[1] for line in lines}) == 6
    return lines


@pytest.mark.parametrize("num_hosts", [2, 4, 8])
def test_hosts_change_nothing(input, expected, num_hosts):
    assert _lines(input, range(3), num_hosts=num_hosts) == expected[:3]


def test_workers_change_nothing(config, expected):
    input = config.clone(num_workers=2).instantiate()
    assert _lines(input, range(3)) == expected[:3]


def test_steps_before_the_first_are_skipped_and_not_made(input, expected):
    assert _lines(input, range(4, 6), num_hosts=2) == expected[4:]


def test_the_seed_matters(config, expected):
    assert _lines(config.clone(seed=1).instantiate(), range(1)) != expected[:1]


def test_killed_and_resumed_on_other_hosts(input, expected, tmp_path):
    state = tmp_path / "state.json"
    process = subprocess.Popen(
        [sys.executable, str(TOOL), *CONFIG, "--steps=0:1000", "--hosts=4", f"--state={state}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    first = [process.stdout.readline().strip() for _ in range(3)]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert first == expected[:3]
    # Killed somewhere between the last line and the next: nothing is left out, at most one again.
    rest = _lines(input, range(6), num_hosts=2, state_path=state)
    assert rest and rest == expected[6 - len(rest) :] and 6 - len(rest) >= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--hosts=3",), "--hosts=3: must divide input.batch_size=8"),
        (("--config=mm1_tinny",), "did you mean mm1_tiny"),
    ],
)
def test_errors_of_one_line(capsys, arguments, message):
    assert tool.main([*CONFIG, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


@pytest.mark.parametrize("steps", ["5:5", "x", "-1:3"])
def test_steps_that_are_none(capsys, steps):
    with pytest.raises(SystemExit):
        tool.parse(["--config=mm1_tiny", f"--steps={steps}"])
    assert steps in capsys.readouterr().err
