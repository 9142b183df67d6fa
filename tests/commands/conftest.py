"""A run of a tiny model with random parameters, for tools that use trained models."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import pytest
from drawn_model import drawn_params
from flax import nnx

from mm1_jax.data.chat_formats.mm1 import MM1ChatFormat
from mm1_jax.data.corpora import digits
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.data.grid_rules import FixedGrid
from mm1_jax.data.input import Input
from mm1_jax.data.mixture import CorpusWeight, Stream
from mm1_jax.data.tiling import Tiling
from mm1_jax.experiment import Experiment
from mm1_jax.launch.launch import Launch
from mm1_jax.launch.run_folder import RunFolder
from mm1_jax.layers.lora import Adapter, LoRA
from mm1_jax.models.connectors.average_pooling import AveragePooling
from mm1_jax.models.decoder import Decoder
from mm1_jax.models.mm1 import MM1
from mm1_jax.models.vision_encoder import VisionEncoder
from mm1_jax.train.train_state import TrainState
from mm1_jax.train.trainer import Trainer

MODULE = "experiment_of_the_tool_test"


def experiment() -> Experiment.Config:
    """A model with one layer of each kind, images of 8 pixels, and 4 positions per image."""
    corpus = CorpusWeight(corpus=digits.corpus(Kind.QUESTIONS), weight=1)
    model = MM1.default_config().set(
        vision_encoder=VisionEncoder.default_config().set(
            image_size=8, patch_size=4, model_dim=8, num_layers=1, num_heads=2, hidden_dim=16
        ),
        connector=AveragePooling.default_config().set(num_image_tokens=4),
        decoder=Decoder.default_config().set(
            model_dim=16, num_layers=1, num_heads=2, hidden_dim=24
        ),
    )
    input = Input.default_config().set(
        streams=[Stream.default_config().set(name="questions", corpora=[corpus])],
        batch_size=2,
        max_sequence_length=64,
        max_images=2,
    )
    return Experiment.default_config().set(
        model=model, input=input, trainer=Trainer.default_config().set(max_steps=10)
    )


def parameters(model: MM1.Config, seed: int):
    abstract = nnx.eval_shape(lambda: model.instantiate(rngs=nnx.Rngs(params=jax.random.key(0))))
    graphdef, shapes = nnx.split(abstract, nnx.Param)
    return graphdef, drawn_params(nnx.to_pure_dict(shapes), seed)


def adapted() -> Experiment.Config:
    """The same with adapters in the decoder, and a connector that is trained as a whole."""
    cfg = experiment()
    cfg.model.lora = LoRA.default_config().set(
        adapters={"decoder/stack": Adapter.default_config().set(rank=2)}, trained=("connector",)
    )
    return cfg


def chat() -> Experiment.Config:
    """A chat model that sees pictures as four tiles and an overview, in rows of 512 positions."""
    cfg = experiment()
    cfg.input.set(
        chat_format=MM1ChatFormat.default_config(),
        tiling=Tiling.default_config().set(rule=FixedGrid.default_config()),
        max_sequence_length=512,
        max_images=10,
    )
    return cfg


def save_run(name: str, folder: Path, steps: tuple[int, ...]):
    """Saves a run with checkpoints of these steps; returns the folder, their models, the config."""
    launch = Launch(name, MODULE)
    cfg = launch.resolved_config()
    RunFolder(folder).claim(launch, cfg)
    checkpointer = cfg.trainer.checkpointer.instantiate(directory=folder / "checkpoints")
    models = {}
    for step in steps:
        graphdef, params = parameters(cfg.model, step)
        models[step] = nnx.merge(graphdef, params)
        checkpointer.save(step, TrainState(jnp.int32(step), params, ()), {"step": step})
    checkpointer.wait()
    checkpointer.close()
    return folder, models, cfg


@pytest.fixture(scope="session")
def experiments_of_runs():
    module = ModuleType(MODULE)
    module.named_configs = lambda: {"minute": experiment, "adapted": adapted, "chat": chat}
    sys.modules[MODULE] = module
    yield
    del sys.modules[MODULE]


@pytest.fixture(scope="module")
def run(tmp_path_factory, experiments_of_runs):
    """The folder of a run with checkpoints of steps 3 and 7, their models, and the config."""
    return save_run("minute", tmp_path_factory.mktemp("minute"), (3, 7))


@pytest.fixture(scope="module")
def adapted_run(tmp_path_factory, experiments_of_runs):
    """The folder of a run with adapters, its model by step, and the config."""
    return save_run("adapted", tmp_path_factory.mktemp("adapted"), (3,))


@pytest.fixture(scope="module")
def chat_run(tmp_path_factory, experiments_of_runs):
    """The folder of a chat run with a checkpoint of step 7, its model, and the config."""
    folder, models, cfg = save_run("chat", tmp_path_factory.mktemp("chat"), (7,))
    return folder, models[7], cfg


@pytest.fixture
def by_two(run, tmp_path):
    """Runs a command on the run in two processes; returns exit codes and outputs."""
    folder, _, _ = run
    # The processes import the module of the run from here.
    module = json.loads((folder / "launch.json").read_text())["module"]
    (tmp_path / f"{module}.py").write_text(
        "from conftest import experiment\n\n"
        "def named_configs():\n    return {'minute': experiment}\n"
    )
    (tmp_path / "conftest.py").write_text(Path(__file__).read_text())
    root = Path(__file__).parents[2]
    paths = [str(root), str(root / "tests" / "data")]

    def give(*asked, command="evaluate", of_second=()):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "mm1_jax", command, f"--checkpoint={folder}", *asked]
                + [f"--coordinator_address=localhost:{port}", "--num_processes=2"]
                + [f"--process_id={process}", *(of_second if process else ())],
                cwd=tmp_path,
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join(paths), "JAX_NUM_CPU_DEVICES": "2"}
                | {"XLA_FLAGS": os.environ["MM1_TEST_QUICK_XLA_FLAGS"]},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for process in range(2)
        ]
        said = [process.communicate(timeout=300) for process in processes]
        return [process.returncode for process in processes], said

    return give
