"""Launches from weights of others, and from a run: frozen parts stay what they were imported as."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import foreign_experiment
import numpy as np
import pytest
from parity import randomise
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from mm1_jax.interop.importer import import_checkpoint
from mm1_jax.weights_folder import StoredParams

ROOT = Path(__file__).parent.parent.parent
FOLDERS = (ROOT, ROOT / "tests" / "data", ROOT / "tests" / "interop")


def start(folder: Path, config: str) -> subprocess.Popen:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(map(str, FOLDERS)),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "mm1_jax.launch", "--module=foreign_experiment"),
            *(f"--config={config}", f"--data_dir={folder}"),
            f"--output_dir={folder / 'runs' / config}",
        ],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen, status: int = 0) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == status, output
    return output


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """With imported weights of a tower and a decoder."""
    folder = tmp_path_factory.mktemp("workspace")
    models = {
        "vision_encoder": CLIPVisionModel(CLIPVisionConfig(**foreign_experiment.TOWER)),
        "decoder": LlamaForCausalLM(LlamaConfig(**foreign_experiment.TEXT)),
    }
    for part, model in models.items():
        randomise(model).save_pretrained(folder / "hf" / part)
        import_checkpoint(folder / "hf" / part, folder / "weights" / part, skip_comparison=True)
    return folder


def test_a_run_from_imported_weights_goes_on_after_a_signal_and_a_sparse_run_starts_from_it(
    workspace,
):
    folder = workspace / "runs" / "from_foreign"
    process = start(workspace, "from_foreign")
    path = folder / "metrics.jsonl"
    while not path.exists() or path.read_text().count("\n") < 6:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output = finish(process, 143)
    for part in foreign_experiment.PARTS:
        assert f"{part} starts from weights/{part}" in output
    output = finish(start(workspace, "from_foreign"))
    assert "starts from" not in output and "training continues after step" in output
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == list(range(1, foreign_experiment.MAX_STEPS + 1))
    trained = StoredParams(folder)
    for part in foreign_experiment.PARTS:
        imported = StoredParams(workspace / "weights" / part)
        for name in imported.shapes:
            np.testing.assert_array_equal(trained.read(name), imported.read(name), name)

    output = finish(start(workspace, "from_run"))
    assert "decoder starts from runs/from_foreign" in output
    sparse = StoredParams(workspace / "runs" / "from_run")
    experts = sparse.read("decoder/stack/last_layer/feed_forward/experts/up")
    dense = trained.read("decoder/stack/layer/feed_forward/up/kernel")
    np.testing.assert_array_equal(experts, np.broadcast_to(dense[1::2, None], experts.shape))
    name = "vision_encoder/class_token/position"
    np.testing.assert_array_equal(sparse.read(name), trained.read(name))
