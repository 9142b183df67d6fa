"""Launches from imported weights and from a run: frozen parts keep their imported weights."""

import json
import os
import signal
import subprocess
from pathlib import Path

import foreign_experiment
import launches
import numpy as np
import pytest
from launches import ROOT, finish, wait_for_step
from parity import randomise
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from mm1_jax.checkpoints.weights_folder import StoredParams
from mm1_jax.interop.importer import import_checkpoint

FOLDERS = (ROOT, ROOT / "tests" / "data", ROOT / "tests" / "interop")


def start(folder: Path, config: str) -> subprocess.Popen:
    return launches.start(
        [
            *("--module=foreign_experiment", f"--config={config}", f"--data_dir={folder}"),
            f"--output_dir={folder / 'runs' / config}",
        ],
        folder / "cache",
        PYTHONPATH=os.pathsep.join(map(str, FOLDERS)),
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A folder with imported weights of a vision encoder and a decoder."""
    folder = tmp_path_factory.mktemp("workspace")
    models = {
        "vision_encoder": CLIPVisionModel(CLIPVisionConfig(**foreign_experiment.TOWER)),
        "decoder": LlamaForCausalLM(LlamaConfig(**foreign_experiment.TEXT)),
    }
    for part, model in models.items():
        randomise(model).save_pretrained(folder / "hf" / part)
        import_checkpoint(folder / "hf" / part, folder / "weights" / part, skip_comparison=True)
    return folder


@pytest.fixture(scope="module")
def first_launch(workspace) -> str:
    """The output of a run from imported weights that a signal stopped."""
    process = start(workspace, "from_foreign")
    wait_for_step(process, workspace / "runs" / "from_foreign", 6)
    process.send_signal(signal.SIGTERM)
    return finish(process, 143)


@pytest.fixture(scope="module")
def second_launch(workspace, first_launch) -> str:
    return finish(start(workspace, "from_foreign"))


def test_a_run_from_imported_weights_resumes_after_a_signal(workspace, first_launch, second_launch):
    folder = workspace / "runs" / "from_foreign"
    for part in foreign_experiment.PARTS:
        assert f"{part} starts from weights/{part}" in first_launch
    assert "starts from" not in second_launch
    assert "training continues after step" in second_launch
    steps = [
        json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, foreign_experiment.MAX_STEPS + 1))
    trained = StoredParams(folder)
    for part in foreign_experiment.PARTS:
        imported = StoredParams(workspace / "weights" / part)
        for name in imported.shapes:
            np.testing.assert_array_equal(trained.read(name), imported.read(name), name)


def test_a_sparse_run_starts_from_a_dense_one(workspace, second_launch):
    output = finish(start(workspace, "from_run"))
    assert "decoder starts from runs/from_foreign" in output
    trained = StoredParams(workspace / "runs" / "from_foreign")
    sparse = StoredParams(workspace / "runs" / "from_run")
    experts = sparse.read("decoder/stack/last_layer/feed_forward/experts/up")
    dense = trained.read("decoder/stack/layer/feed_forward/up/kernel")
    np.testing.assert_array_equal(experts, np.broadcast_to(dense[1::2, None], experts.shape))
    name = "vision_encoder/class_token/position"
    np.testing.assert_array_equal(sparse.read(name), trained.read(name))
