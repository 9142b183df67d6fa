"""A small study whose launches are a script that takes a moment."""

import sys
from pathlib import Path

import pytest

from mm1_jax.studies import runner
from mm1_jax.studies.results import Results
from mm1_jax.studies.study import Arm, Claim, Metric, Score, Stage, Study

# Writes the report that a run would write: a score that is higher by 1 for `tiles`, plus noise of
# the seed. It fails if the stage that it names has not ended, and notes every start.
LAUNCH = """\
import json, os, pathlib, sys, time
options = dict(word[2:].split("=", 1) for word in sys.argv[1:])
folder = pathlib.Path(options["output_dir"])
with open(os.environ["STARTS"], "a") as file:
    file.write(f"{folder}\\n")
stage = options.get("config.trainer.initial_weights.decoder.path")
assert stage is None or pathlib.Path(stage, "report.json").exists(), stage
time.sleep(float(os.environ.get("SECONDS_OF_A_RUN", 0.05)))
if pathlib.Path(os.environ["STARTS"]).with_name("broken").exists():
    sys.exit("error: broken")
score = int(options["config.trainer.seed"]) / 100 + (options["config.input.tiling"] == "2x2")
folder.mkdir(parents=True, exist_ok=True)
(folder / "report.json").write_text(json.dumps({"boxes/0/accuracy": score, "boxes/0/iou": 0.5}))
"""


def small_study() -> Study:
    stage = Stage("pretraining", "mm1_tiny", {"input.tiling": "none"}, minutes=5.0)
    path = {"trainer.initial_weights.decoder.path": "{pretraining}"}
    return Study(
        design="Tiles against one view.",
        stages=[stage],
        arms=[
            Arm("one_view", "mm1_tiny", {"input.tiling": "none", **path}, minutes=3.0),
            Arm("tiles", "mm1_tiny", {"input.tiling": "2x2", **path}, minutes=4.0),
        ],
        reference="one_view",
        metrics=[
            Metric("boxes", ("boxes/0/accuracy",)),
            Metric("both", ("boxes/0/accuracy", "boxes/0/iou")),
        ],
        claims=[
            Claim("tiles help", Score("tiles", "boxes"), Score("one_view", "boxes"), 0.1),
        ],
        seeds=(0, 1, 2),
        name="small",
        module="experiments.pretrain",
    )


@pytest.fixture
def study() -> Study:
    return small_study()


@pytest.fixture
def results(tmp_path, study) -> Results:
    return Results(tmp_path / "out" / "small.csv", study)


@pytest.fixture
def make_runner(tmp_path, study, results, monkeypatch):
    """Returns a function that makes a runner, and the file with a line per launch."""
    script, starts = tmp_path / "launch.py", tmp_path / "starts"
    script.write_text(LAUNCH)
    starts.touch()
    monkeypatch.setenv("STARTS", str(starts))
    monkeypatch.setattr(runner, "LAUNCH", (sys.executable, "-S", str(script)))
    monkeypatch.setattr(runner, "_WAIT_SECONDS", 0.05)

    def make(**options) -> runner.Runner:
        said: list[str] = []
        return runner.Runner(study, results, tmp_path / "runs", say=said.append, **options)

    return make


@pytest.fixture
def starts(tmp_path):
    """Returns a function that counts the launches of each run folder."""

    def count() -> dict[str, int]:
        lines = (tmp_path / "starts").read_text().splitlines()
        names = ["/".join(Path(line).parts[-2:]) for line in lines]
        return {name: names.count(name) for name in sorted({*names})}

    return count
