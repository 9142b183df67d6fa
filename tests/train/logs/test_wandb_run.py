import sys
from types import SimpleNamespace

import numpy as np
import pytest

from mm1_jax.evals.evaluator import Sample
from mm1_jax.train.logs.wandb_run import WandbRun

SAMPLE = Sample(np.zeros((8, 8, 3), np.uint8), "what digit?", "3", "8", False, "digits_vqa")


def test_launches_into_a_folder_are_one_run(tmp_path, monkeypatch):
    calls = []
    run = SimpleNamespace(log=lambda values, step: calls.append((step, values)), finish=list)
    fake = SimpleNamespace(
        init=lambda **arguments: calls.append(arguments) or run,
        Settings=lambda **_: None,
        Image=lambda pixels: pixels.shape,
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for step in (1, 2):
        cfg = WandbRun.default_config().set(project="p")
        own = cfg.instantiate(output_dir=tmp_path / "run", description={"a": "1"})
        own.scalars(step, {"loss": 0.5, "expert_load": [[0.25, 0.75]], "text": "no number"})
        own.samples(step, "digits_vqa", [SAMPLE])
        own.close()
    first, numbers, picture, second, *_ = calls
    assert first == second
    assert (first["project"], first["name"], first["resume"]) == ("p", "run", "allow")
    assert len(first["id"]) == 8
    assert numbers == (1, {"loss": 0.5, "expert_load/0/0": 0.25, "expert_load/0/1": 0.75})
    assert picture[1]["samples/digits_vqa"][2] == 3


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install mm1_jax\[wandb\]"):
        WandbRun.default_config().instantiate(output_dir=tmp_path, description={})


def test_the_real_package_writes_without_an_account(tmp_path):
    pytest.importorskip("wandb")
    cfg = WandbRun.default_config().set(mode="offline")
    own = cfg.instantiate(output_dir=tmp_path, description={"model.dim": "8"})
    own.scalars(1, {"loss": 0.5})
    own.samples(1, "digits_vqa", [SAMPLE])
    own.close()
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/samples/digits_vqa*.png"))
