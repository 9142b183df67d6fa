"""Trains a sparse model from JSONL files and pictures, with the commands of the README."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

# The sparse 7B with all its parts, at a size for tests.
SMALL = {
    "input.tokenizer.num_pieces": 1200,
    "input.batch_size": 4,
    "input.max_sequence_length": 256,
    "input.max_images": 8,
    "input.image_group_rows": 2,
    "input.images_per_row": 8,
    "input.packing.num_shards": 4,
    "input.num_workers": 0,
    "model.decoder.num_layers": 4,
    "model.decoder.model_dim": 32,
    "model.decoder.num_heads": 2,
    "model.decoder.hidden_dim": 64,
    "model.decoder.moe.num_experts": 4,
    "model.vision_encoder.image_size": 28,
    "model.vision_encoder.num_layers": 1,
    "model.vision_encoder.model_dim": 32,
    "model.vision_encoder.num_heads": 2,
    "model.vision_encoder.hidden_dim": 64,
    "model.connector.num_image_tokens": 4,
    "model.connector.hidden_dim": 32,
    "model.connector.depth": 1,
    "trainer.max_steps": 4,
    "trainer.summary_every_n_steps": 2,
    "trainer.optimizer.warmup_steps": 1,
    "evals.held_out_loss.num_batches": 1,
}


def run(*arguments, status=0):
    env = os.environ | {"XLA_FLAGS": os.environ["MM1_TEST_QUICK_XLA_FLAGS"]}
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert result.returncode == status, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def test_data():
    folder = os.environ.get("MM1_TEST_DATA")
    if not folder:
        pytest.skip("MM1_TEST_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="module")
def data_dir(test_data, tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    for name, files in {
        "captions": ["openstax/captions.jsonl"],
        "interleaved": ["openstax/interleaved.jsonl", "recipes/interleaved.jsonl"],
        "text": ["d2l/text.jsonl"],
    }.items():
        inputs = [f"--input={test_data / file}" for file in files]
        output = f"--output={data / name}"
        run("tools/convert_records.py", "--format=jsonl", *inputs, output, "--num_workers=1")
    run(
        *("tools/train_tokenizer.py", f"--data_dir={data}", "--vocab_size=1200"),
        *(f"--output={data / 'tokenizer.model'}", "--max_characters=300000"),
    )
    return data


def launch(data_dir, output_dir):
    overrides = [f"--config.{path}={value}" for path, value in SMALL.items()]
    options = ["--config=mm1_7b_moe", f"--output_dir={output_dir}", f"--data_dir={data_dir}"]
    return run("-m", "mm1_jax.launch", *options, *overrides)


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return folder, launch(data_dir, folder)


def test_the_sparse_7b_trains_at_a_small_size_on_real_records(trained):
    folder, result = trained
    # The contents of the streams are logged before the first step.
    assert "45.0% of the rows" in result.stdout and "to fit in a row" in result.stdout
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    given = {name: steps[3][f"corpora/{name}/tokens"] for name in ("captions", "interleaved")}
    assert min(given.values()) > 0 and "corpora/text/epochs" in steps[3]
    report = json.loads((folder / "report.json").read_text())
    assert 0 < report["held_out_loss/0/captions"] < 8


def test_moving_the_data_does_not_change_the_run(trained, data_dir):
    moved = data_dir.rename(data_dir.with_name("moved"))
    again = launch(moved, trained[0])
    moved.rename(data_dir)
    assert "finished already" in again.stdout


def test_a_launch_without_data_says_how_to_make_it(tmp_path):
    result = run(
        *("-m", "mm1_jax.launch", "--config=mm1_7b_moe", f"--data_dir={tmp_path}"),
        f"--output_dir={tmp_path / 'run'}",
        status=2,
    )
    for name in ("captions", "interleaved", "text"):
        assert f"convert_records --format=FORMAT --input=PATH --output={tmp_path / name}" in (
            result.stderr
        )
    assert f"train_tokenizer --data_dir={tmp_path} --output={tmp_path}" in result.stderr
    assert "Traceback" not in result.stderr
