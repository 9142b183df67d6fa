"""The command line of conversions: what is said, and what a killed one leaves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from foreign_models import save

from tools.convert_checkpoint import main

ROOT = Path(__file__).parent.parent.parent

# Ends as a kill does, with nothing cleaned up, when half of the tensors are written.
KILLED = """
import os, sys
from pathlib import Path
from mm1_jax.interop.importer import import_checkpoint
names = []
def watch(name, size):
    names.append(name)
    if len(names) == 20:
        os._exit(9)
import_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), watch=watch)
"""


@pytest.fixture
def source(tmp_path):
    save("llama", tmp_path / "hf")
    return tmp_path / "hf"


def test_a_killed_conversion_leaves_nothing_that_looks_whole(source, tmp_path):
    output = tmp_path / "weights"
    command = (sys.executable, "-c", KILLED, str(source), str(output))
    killed = subprocess.run(command, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert killed.returncode == 9
    left = [path.name for path in tmp_path.iterdir() if path.name != "hf"]
    assert len(left) == 1 and left[0].startswith("weights.partial-")
    assert not (tmp_path / left[0] / "weights.json").exists()
    assert main(["import", f"--source={source}", f"--output={output}", "--skip_comparison"]) == 0
    assert (output / "weights.json").exists()


def test_it_says_what_was_compared_and_how_long_it_took(source, tmp_path, capsys):
    assert main(["import", f"--source={source}", f"--output={tmp_path / 'weights'}"]) == 0
    output = capsys.readouterr().out
    assert "Good. logits of random tokens: largest difference" in output
    assert "the bound is 2e-05" in output and "GiB of memory at most" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "--source=nowhere", "--output=x"], "nowhere: no such file or folder"),
        (["export", "--checkpoint=nowhere", "--output=x"], "nowhere: neither weights.json nor"),
    ],
)
def test_what_is_not_there_is_named(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_an_output_that_is_there_is_not_written_over(source, tmp_path, capsys):
    (tmp_path / "weights").mkdir()
    assert main(["import", f"--source={source}", f"--output={tmp_path / 'weights'}"]) == 2
    assert "is there already" in capsys.readouterr().err
