"""The installed wheel runs every command in an empty folder, without the checkout."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mm1_jax import __version__
from mm1_jax.__main__ import COMMANDS

ROOT = Path(__file__).parent.parent

# A user's folder of experiments: mm1_tiny with few records, whose lengths are computed quickly.
EXPERIMENT = """
from experiments import pretrain

def small():
    cfg = pretrain.mm1_tiny()
    for stream in cfg.input.streams:
        for entry in stream.corpora:
            entry.corpus.source.num_records = 64
    return cfg

def named_configs():
    return {"small": small}
"""

# Runs several commands in one process, because most of their time is spent on imports.
RUN = """
import json, sys
from mm1_jax.__main__ import main
for arguments in json.loads(sys.argv[1]):
    print("==", arguments[0], flush=True)
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    assert status == 0, (arguments, status)
import experiments, mm1_jax
print("==", mm1_jax.__file__, experiments.__file__)
"""


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


@pytest.fixture(scope="module")
def installed(wheel) -> Path:
    """A folder with the installed wheel, beside the dependencies of this environment."""
    folder = wheel.parent / "installed"
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet")
    run(*pip, f"--target={folder}", str(wheel), cwd=wheel.parent)
    return folder


@pytest.fixture
def empty(tmp_path, monkeypatch, installed) -> Path:
    """An empty folder where the installed package is found, and the checkout is not."""
    monkeypatch.setenv("PYTHONPATH", str(installed))
    return tmp_path


def outputs(folder: Path, *commands: tuple[str, ...]) -> dict[str, str]:
    """Runs commands in a folder with the installed package; returns what each one prints."""
    text = run(sys.executable, "-c", RUN, json.dumps(commands), cwd=folder)
    *said, files = text.removeprefix("== ").split("\n== ")
    for file in files.split():
        assert Path(os.environ["PYTHONPATH"]) in Path(file).parents
    return dict(each.partition("\n")[::2] for each in said)


def test_the_wheel_holds_the_experiments_and_the_tokenizer(wheel):
    assert wheel.name.startswith(f"mm1_jax-{__version__}-")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"experiments/pretrain.py", "mm1_jax/data/assets/tiny.model"} <= names
    assert not any(name.startswith(("tests/", "tools/")) for name in names)


def test_the_wheel_resolves_a_named_experiment_in_an_empty_folder(empty):
    launch = (sys.executable, "-m", "mm1_jax.launch")
    output = run(*launch, "--config=mm1_tiny", "--print_config", cwd=empty)
    golden = ROOT / "experiments" / "golden" / "mm1_tiny.txt"
    # Golden texts leave out the fields that are not set.
    assert set(golden.read_text().splitlines()) <= set(output.splitlines())


def test_every_command_of_the_wheel_describes_itself(empty, installed):
    said = outputs(empty, *((name, "--help") for name in COMMANDS))
    assert all("usage:" in said[name] for name in COMMANDS)
    listed = run(str(installed / "bin" / "mm1_jax"), cwd=empty)
    assert listed.startswith("usage: mm1_jax COMMAND") and all(x in listed for x in COMMANDS)
    assert list(empty.iterdir()) == []


def test_commands_of_the_wheel_work_with_data_and_an_experiment_of_the_folder(empty):
    (empty / "experiments").mkdir()
    (empty / "experiments" / "mine.py").write_text(EXPERIMENT)
    pages = [{"text": f"Page {n} is about {n} squares and a circle."} for n in range(200)]
    (empty / "pages.jsonl").write_text("\n".join(map(json.dumps, pages)))
    source = ("--format=text", "--input=pages.jsonl", "--output=data/text")
    model = "data/tokenizer.model"
    said = outputs(
        empty,
        ("launch", "--list"),
        ("convert_records", *source, "--num_workers=1"),
        ("train_tokenizer", "--data_dir=data", f"--output={model}", "--vocab_size=300"),
        ("compute_lengths", "--config=small"),
        ("show_batch", "--config=small", "--rows=0:1"),
        ("snapshot", "--config=small", "--steps=1", "--output=snapshot"),
        ("hash_batches", "--config=small", "--steps=0:1"),
        ("evaluate", "--list"),
        ("convert_records", "--verify", "--output=data/text"),
    )
    assert "\nsmall " in said["launch"] and "\nmm1_7b_moe " in said["launch"]
    assert "1 shards are as they were" in said["convert_records"]
    assert said["train_tokenizer"] == f"Wrote {model}" and (empty / model).exists()
    assert "<html" in (empty / said["show_batch"]).read_text()
    assert "snapshot: 1 steps" in said["snapshot"] and said["hash_batches"].startswith("0 ")
    assert "vqav2" in said["evaluate"]
