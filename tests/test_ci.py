"""Continuous integration fails a test whose call is slow both in the suite and alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent

TESTS = """
import time
from pathlib import Path

import pytest


def test_of_a_moment():
    pass


@pytest.mark.parametrize("name", ["with a space"])
def test_that_was_held_up_once(name):
    mark = Path(__file__).with_name("mark")
    if not mark.exists():
        mark.touch()
        time.sleep(0.6)


@pytest.mark.skipif(not LONG, reason="")
def test_that_takes_long():
    time.sleep(0.6)
"""

README = """
<!-- test command -->
```bash
.venv/bin/python -m pytest -n 2 -c pytest.ini
```
"""


@pytest.mark.parametrize("has_long", [True, False])
def test_only_tests_that_are_slow_twice_fail(tmp_path, has_long):
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --long_call=0.4\n")
    (tmp_path / "test_calls.py").write_text(TESTS.replace("LONG", str(has_long)))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    result = subprocess.run(
        [tmp_path / ".ci" / "run"], env=environment, capture_output=True, text=True
    )
    assert "slowest 25 durations" in result.stdout
    first, again = result.stdout.split("Again, one after the other")
    assert "2 passed, 1 skipped" in first or "3 passed" in first
    assert result.returncode == int(has_long), result.stdout + result.stderr
    assert ("1 failed, 1 passed" if has_long else "1 passed") in again
    assert ("test_calls.py::test_that_takes_long took " in again) == has_long


def test_the_workflow_runs_every_script_of_continuous_integration_and_nothing_else():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    scripts = {step["run"] for step in steps if "run" in step}
    ours = {
        path for path in (ROOT / ".ci").iterdir() if os.access(path, os.X_OK) and path.is_file()
    }
    assert scripts == {f".ci/{path.name}" for path in ours}


def test_the_notebook_is_stored_without_outputs():
    notebook = json.loads((ROOT / "docs" / "train_and_ask.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert cells and not any(cell["outputs"] or cell["execution_count"] for cell in cells)
