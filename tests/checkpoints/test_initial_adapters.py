"""Runs with adapters: from a run without them, resumed, exported, and started from PEFT."""

import json
import shutil

import numpy as np
import pytest

from experiments.mixtures import embedded
from experiments.pretrain import mm1_tiny
from experiments.sizes import language_model
from mm1_jax.checkpoints.initial_adapters import InitialAdapters
from mm1_jax.checkpoints.initial_weights import InitialWeights
from mm1_jax.checkpoints.weights_folder import StoredParams
from mm1_jax.experiment import Experiment
from mm1_jax.interop.adapters import adapted_model
from mm1_jax.interop.mm1 import model_parts
from mm1_jax.interop.native import native_model
from mm1_jax.interop.peft import export_adapters
from mm1_jax.interop.peft_import import import_adapters
from mm1_jax.layers.lora import Adapter, LoRA


@pytest.fixture(scope="module")
def cfg(with_few_records):
    cfg = mm1_tiny()
    cfg.model = language_model(cfg.model.decoder.set(num_layers=2, model_dim=32, hidden_dim=32))
    cfg.input.set(streams=embedded()[2:], max_images=0, max_sequence_length=64)
    with_few_records(cfg.input.streams)
    cfg.trainer.set(max_steps=1)
    cfg.trainer.optimizer.set(warmup_steps=0, decay_steps=4, learning_rate=1e-2)
    cfg.evals = {}
    return cfg


def adapted(cfg, base):
    cfg = cfg.clone()
    cfg.model.lora = LoRA.default_config().set(
        adapters={"decoder/stack": Adapter.default_config().set(rank=2)}, trained=("decoder/norm",)
    )
    cfg.trainer.set(max_steps=4)
    cfg.trainer.checkpointer.every_n_steps = 2
    weights = InitialWeights.default_config().set(path=str(base))
    cfg.trainer.initial_weights = {"model": weights}
    return cfg


def run(cfg, folder):
    cfg.instantiate(output_dir=folder).run()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return StoredParams(folder), [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def runs(cfg, tmp_path_factory):
    """A folder with a run and one with adapters that starts from it; the losses of the latter."""
    folder = tmp_path_factory.mktemp("runs")
    run(cfg, folder / "base")
    _, losses = run(adapted(cfg, folder / "base"), folder / "whole")
    return folder, losses


def test_an_adapted_run_starts_from_its_base_and_resumes(cfg, runs, tmp_path):
    folder, losses = runs
    base, trained = StoredParams(folder / "base"), StoredParams(folder / "whole")
    is_trained = {
        path: path not in base.shapes or not np.array_equal(trained.read(path), base.read(path))
        for path in trained.shapes
    }
    assert is_trained == {p: "/lora/" in p or p == "decoder/norm/scale" for p in trained.shapes}

    shutil.copytree(folder / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "4")
    resumed, again = run(adapted(cfg, folder / "base"), tmp_path / "resumed")
    assert again == losses
    for path in trained.shapes:
        np.testing.assert_array_equal(resumed.read(path), trained.read(path), path)


def test_adapters_go_to_peft_and_start_another_run(cfg, runs, tmp_path):
    folder, _ = runs
    base, trained = StoredParams(folder / "base"), StoredParams(folder / "whole")
    cfg = adapted(cfg, folder / "base")
    resolved = Experiment.resolve(cfg)
    parts = model_parts(resolved.model)
    export_adapters(
        folder / "whole",
        None,
        adapted_model(resolved.model),
        parts,
        tmp_path / "peft",
        native=native_model(parts),
        image_token=resolved.model.image_token,
        skip_comparison=True,
    )
    import_adapters(tmp_path / "peft", tmp_path / "adapters", base=base, parts=parts)
    path = str(tmp_path / "adapters")
    cfg.trainer.initial_adapters = InitialAdapters.default_config().set(path=path)
    cfg.trainer.optimizer.learning_rate = 0.0
    cfg.trainer.max_steps = 1
    started, _ = run(cfg, tmp_path / "started")
    for path in trained.shapes:
        np.testing.assert_array_equal(started.read(path), trained.read(path), path)

    cfg.model.lora.adapters["decoder/stack"].set(rank=4)
    cfg.model.lora.trained = ()
    with pytest.raises(ValueError) as error:
        run(cfg, tmp_path / "misfit")
    for part in ("trainer.initial_adapters", "of different shapes", "is [2, 32, 2] in the folder"):
        assert part in str(error.value)
    cfg.model.lora.adapters["decoder/stack"].set(rank=2, alpha=1.0)
    with pytest.raises(ValueError, match="has 8 in the folder and 0.5 here"):
        run(cfg, tmp_path / "misfit")
