"""The wheel contains everything that a launch needs, without the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: str, cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env=os.environ | environment
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Builds from a copy, because a build leaves files beside the sources.
    source = folder / "source"
    run("git", "checkout-index", "--all", f"--prefix={source}/", cwd=ROOT)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation")
    run(*pip, "--quiet", f"--wheel-dir={folder}", str(source), cwd=folder)
    (built,) = folder.glob("mm1_jax-*.whl")
    return built


def test_the_wheel_holds_the_experiments_and_the_tokenizer(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"experiments/pretrain.py", "mm1_jax/data/assets/tiny.model"} <= names
    assert not any(name.startswith(("tests/", "tools/")) for name in names)


def test_the_wheel_resolves_a_named_experiment_in_an_empty_folder(wheel, tmp_path):
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(installed)
    launch = (sys.executable, "-m", "mm1_jax.launch")
    output = run(
        *launch, "--config=mm1_tiny", "--print_config", cwd=empty, PYTHONPATH=str(installed)
    )
    golden = ROOT / "experiments" / "golden" / "mm1_tiny.txt"
    assert output == golden.read_text()
