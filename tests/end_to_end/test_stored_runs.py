"""Runs that earlier code trained (`tests/stored_runs`) are resumed, read and exported as before."""

import json
import os
import shutil
from pathlib import Path

import pytest
from launches import ROOT, finish, start

from experiments import pretrain
from mm1_jax.checkpoints.initial_weights import InitialWeights
from mm1_jax.checkpoints.weights_folder import StoredParams
from mm1_jax.experiment import Experiment
from mm1_jax.interop.exporter import export_mm1
from mm1_jax.interop.mm1 import model_parts
from mm1_jax.launch.run_folder import MAY_CHANGE, load_experiment
from mm1_jax.stored_config import Scalar, flat_fields, read_fields

STORED = ROOT / "tests" / "stored_runs"
RUNS = sorted(path.name for path in STORED.iterdir() if path.is_dir())


@pytest.fixture(params=RUNS)
def stored(request) -> Path:
    return STORED / request.param


def _fields(folder: Path) -> dict[str, Scalar]:
    return read_fields((folder / "config.txt").read_text())


def _steps(folder: Path) -> dict[int, dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {record["step"]: record for record in map(json.loads, lines)}


def test_a_stored_run_is_resumed_with_the_config_it_was_trained_with(stored, tmp_path):
    folder = tmp_path / stored.name
    shutil.copytree(stored, folder)
    launch = json.loads((folder / "launch.json").read_text())
    overrides = [
        f"--config.{path}={text}"
        for path, text in launch["overrides"].items()
        if not path.startswith("evals.") or path.startswith("evals.held_out_loss.")
    ]
    (saved,) = (int(path.name) for path in folder.glob("checkpoints/[0-9]*"))
    output = finish(
        start(
            [
                "--module=held_out_only",
                f"--config={launch['config']}",
                f"--output_dir={folder}",
                *overrides,
            ],
            tmp_path / "cache",
            PYTHONPATH=os.pathsep.join((str(ROOT), str(Path(__file__).parent))),
        )
    )
    assert f"continues after step {saved}" in output
    before, now = _fields(stored), _fields(folder)
    for path in before:
        may_change = path.startswith(MAY_CHANGE)
        assert may_change or now[path] == before[path], path
    expected, steps = _steps(stored), _steps(folder)
    assert steps.keys() == expected.keys() and max(steps) > saved
    for step in range(saved + 1, max(steps) + 1):
        assert steps[step]["learning_rate"] == pytest.approx(expected[step]["learning_rate"])
        # Another processor rounds differently.
        for name in ("loss", "grad_norm", "total_loss"):
            assert steps[step][name] == pytest.approx(expected[step][name], rel=1e-4), name
    ours, theirs = (
        json.loads((path / "evaluations.jsonl").read_text().splitlines()[0])
        for path in (folder, stored)
    )
    assert ours.pop("evaluator") == theirs.pop("evaluator") == "held_out_loss"
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_initial_weights_restore_the_defaults_they_were_trained_with(stored):
    def eps(part, **chosen):
        cfg = pretrain.mm1_tiny()
        cfg.model.connector.norm.set(**chosen)
        cfg.trainer.initial_weights = {part: InitialWeights.default_config().set(path=str(stored))}
        return Experiment.resolve(cfg).model.connector.norm.eps

    assert _fields(stored)["model.connector.norm.eps"] == 1e-6
    assert (eps("connector"), eps("connector/stage_1"), eps("decoder")) == (1e-6, 1e-6, 1e-5)
    # A chosen value is kept; only a changed default is replaced.
    assert eps("connector", eps=3e-4) == 3e-4


def test_a_stored_run_is_loaded_with_the_config_it_was_trained_with(stored, tmp_path):
    cfg = load_experiment(stored)
    before = {path: x for path, x in _fields(stored).items() if path.startswith("model.")}
    now = {f"model.{path}": x for path, x in flat_fields(cfg.model).items()}
    assert {path: now[path] for path in before} == before
    export_mm1(
        StoredParams(stored),
        model_parts(cfg.model),
        tmp_path / "hf",
        image_token=cfg.model.image_token,
        skip_comparison=True,
    )
    exported = json.loads((tmp_path / "hf" / "config.json").read_text())
    expected = json.loads((stored / "exported_config.json").read_text())
    settings = ("vision_settings", "connector_settings", "decoder_settings", "image_token_id")
    assert [exported[name] for name in settings] == [expected[name] for name in settings]
