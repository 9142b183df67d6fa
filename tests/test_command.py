import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mm1_jax import command
from mm1_jax.command import Stopped

ROOT = Path(__file__).parents[1]
COMMANDS = sorted((ROOT / "mm1_jax" / "commands").glob("[a-z]*.py"))
NAMES = {path.stem for path in COMMANDS}
# Scripts that start by themselves; small_run.py holds configs.
SCRIPTS = [
    *(x for x in sorted((ROOT / "tools").glob("*.py")) if x.stem not in NAMES | {"small_run"}),
    ROOT / "mm1_jax" / "rehearse" / "__main__.py",
]

# A script like those in tools/, with a slow import and a slow main.
SCRIPT = r"""
if __name__ == "__main__":
    from mm1_jax.command import end_on_signals
    end_on_signals()

import sys, time
from pathlib import Path

from mm1_jax.command import command

if sys.argv[2] == "lazy":
    (Path(sys.argv[1]) / "slow_module.py").write_text(
        "import time, pathlib\n"
        "(pathlib.Path(__file__).parent / 'lazy').touch()\n"
        "for _ in range(600): time.sleep(0.1)"
    )
    sys.path.insert(0, sys.argv[1])

class Collected:
    def __del__(self):
        wait("collected")

def wait(name):
    Path(sys.argv[1], name).touch()
    # A signal that comes just before a sleep is handled after it.
    for _ in range(600 if name != "collected" else 10):
        time.sleep(0.1)

if sys.argv[2] == "import":
    wait("import")

@command
def main(argv=None):
    if sys.argv[2] == "lazy":
        import slow_module
    if sys.argv[2] == "collected":
        Collected()
        for _ in range(600):
            time.sleep(0.1)
    try:
        wait("main")
    finally:
        Path(sys.argv[1], "cleaned").touch()

sys.exit(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["import", "lazy", "main", "collected"])
def test_a_signal_ends_with_one_line_and_its_status(tmp_path, where, number):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, script, tmp_path, where],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        while not (tmp_path / where).exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert said == f"stopped by {number.name}\n"
    # The stack is unwound, so that a command can remove partial output.
    assert (tmp_path / "cleaned").exists() == (where == "main")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_launch_stopped_before_training_reports_that_nothing_is_saved(tmp_path, number):
    (tmp_path / "slow_config.py").write_text(
        "import sys, time\n"
        f"sys.path.append({str(ROOT / 'tests')!r})\n"
        "import fake_experiment\n"
        "class Slow(fake_experiment.FakeExperiment):\n"
        "    def run(self):\n"
        "        (self.output_dir / 'up').touch()\n"
        "        time.sleep(60)\n"
        "def slow():\n"
        "    return Slow.default_config().set(trainer=fake_experiment.fake_small().trainer)\n"
        "def named_configs():\n    return {'slow': slow}\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "mm1_jax.launch", "--module=slow_config", "--config=slow"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        while not (tmp_path / "runs/slow/up").exists():
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.02)
        process.send_signal(number)
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    line = f"stopped by {number.name}; nothing was saved at this point, launch again to continue\n"
    assert said == line


def test_a_closed_pipe_ends_a_command_silently():
    code = (
        "from mm1_jax.command import command\n"
        "@command\n"
        "def main(argv=None):\n"
        "    print('line\\n' * 100000)\n"
        "    return 0\n"
        "raise SystemExit(main())"
    )
    pipe = '"$PYTHON" -c "$CODE" | head -1; echo ${PIPESTATUS[0]}'
    result = subprocess.run(
        ["bash", "-c", pipe],
        env=os.environ | {"PYTHON": sys.executable, "CODE": code, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.stdout.split() == ["line", "141"] and result.stderr == ""


def _outcome(capsys, error):
    @command.command
    def main(argv):
        raise error

    return main([]), capsys.readouterr().err


def test_user_errors_are_one_line(capsys):
    assert _outcome(capsys, ValueError("a field is wrong")) == (2, "error: a field is wrong\n")
    assert _outcome(capsys, FileNotFoundError("no file"))[0] == 2
    noted = ValueError("many bad records")
    noted.add_note("the quarantine lists them")
    expected = "error: many bad records\nthe quarantine lists them\n"
    assert _outcome(capsys, noted) == (2, expected)
    with pytest.raises(RuntimeError):
        _outcome(capsys, RuntimeError("a fault of ours"))


def test_a_stop_prints_its_notes(capsys):
    stop = Stopped(signal.SIGTERM)
    stop.add_note("the same command resumes")
    assert _outcome(capsys, stop) == (143, "stopped by SIGTERM; the same command resumes\n")
    assert _outcome(capsys, KeyboardInterrupt()) == (130, "stopped by SIGINT\n")


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_every_package_command_is_a_command_and_so_is_its_script(path):
    text = path.read_text()
    assert "@command\ndef main(" in text and f'prog=started_as("{path.stem}")' in text
    # Commands that were never scripts of a checkout have none.
    own_script = ROOT / "tools" / path.name
    if own_script.exists():
        assert f'sys.exit(script("{path.stem}"))' in own_script.read_text()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_is_a_command(path):
    text = path.read_text()
    _, _, code = text.split('"""', 2)
    assert code.lstrip().startswith('if __name__ == "__main__":\n    from mm1_jax.command import')
    assert "@command\ndef main(" in text and text.rstrip().endswith("sys.exit(main())")
