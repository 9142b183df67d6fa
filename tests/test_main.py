"""`python -m mm1_jax`: commands by name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mm1_jax import __version__, command
from mm1_jax.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[1]


def test_the_list_has_every_command(capsys):
    files = {path.stem for path in (ROOT / "mm1_jax" / "commands").glob("[a-z]*.py")}
    assert COMMANDS.keys() == files | {"launch", "rehearse"}
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed and line in listed for name, line in COMMANDS.items())
    assert main(["--help"]) == 0 and capsys.readouterr().out == listed


def test_the_version_equals_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mm1_jax {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["evalute"],
            "evalute: there is no such command; did you mean evaluate or evaluate_encoder? `",
        ),
        (["x", "--list"], "x: there is no such command; `python -m mm1_jax --help` lists"),
        (["--config=mm1_tiny"], "--config=mm1_tiny: expected a command before it; `python"),
    ],
)
def test_an_unknown_command_is_a_one_line_error(capsys, arguments, message):
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_the_command_as_it_was_started(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/venv/bin/mm1_jax", name, "--help"])
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: mm1_jax {name} ")
    # Examples may contain other commands, such as a launch.
    assert "tools/" not in text and f"\n  mm1_jax {name} " in text


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("/somewhere/mm1_jax/__main__.py", "python -m mm1_jax launch"),
        ("/somewhere/mm1_jax/launch/__main__.py", "python -m mm1_jax.launch"),
        ("/venv/bin/mm1_jax", "mm1_jax launch"),
        ("../tools/launch.py", "python ../tools/launch.py"),
        ("/usr/bin/pytest", "python -m mm1_jax launch"),
    ],
)
def test_a_command_is_named_as_it_was_started(script, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    assert command.started_as("launch") == expected


def test_a_script_of_the_checkout_is_the_command():
    result = subprocess.run(
        [sys.executable, "tools/compare_runs.py", "--help"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0
    assert result.stdout.startswith("usage: python tools/compare_runs.py ")
