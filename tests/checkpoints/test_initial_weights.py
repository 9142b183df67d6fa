"""Runs that start from other checkpoints, part by part."""

import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch
import torch.nn.functional as F
from bigram_trainer import make_objective
from foreign_models import save

from experiments.pretrain import mm1_tiny
from mm1_jax.checkpoints.initial_weights import InitialWeights
from mm1_jax.checkpoints.weights_folder import StoredParams
from mm1_jax.experiment import Experiment
from mm1_jax.interop.compare import compare, decoder_logits, random_tokens, with_params
from mm1_jax.interop.exporter import parts_of_weights
from mm1_jax.interop.importer import import_checkpoint
from mm1_jax.launch.launch import Launch
from mm1_jax.launch.run_folder import load_experiment
from mm1_jax.layers.feed_forward import Activation
from mm1_jax.layers.moe import MoE
from mm1_jax.layers.parameter_paths import parameter_path
from mm1_jax.models.upcycling import upcycle
from mm1_jax.models.vision_encoder import resized_positions
from mm1_jax.train.program import Program


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Folders with the weights of a vision encoder and of a decoder."""
    folder = tmp_path_factory.mktemp("weights")
    for name in ("clip vision", "qwen3"):
        save(name, folder / "hf" / name)
        import_checkpoint(folder / "hf" / name, folder / name, skip_comparison=True)
    return folder


@pytest.fixture
def cfg(weights):
    """An MM1 with the encoder and the decoder of `weights`, and a new connector."""
    cfg = mm1_tiny()
    cfg.input.set(streams=[], data_dir=str(weights))
    cfg.evals = {}
    cfg.model.vision_encoder = parts_of_weights(StoredParams(weights / "clip vision"))[
        "vision_encoder"
    ]
    cfg.model.decoder = parts_of_weights(StoredParams(weights / "qwen3"))["decoder"]
    cfg.trainer.optimizer.set(learning_rate=1e-3)
    cfg.trainer.initial_weights = {
        "vision_encoder": InitialWeights.default_config().set(path="clip vision"),
        "decoder": InitialWeights.default_config().set(path="qwen3"),
    }
    return cfg


def first_params(cfg):
    model = cfg.model.clone(image_token=99)
    optimizer = cfg.trainer.optimizer.clone(decay_steps=100)
    trainer = cfg.trainer.clone(optimizer=optimizer)
    objective = make_objective(model, trainer.loss, rows=8)
    spec = trainer.klass.program_spec(trainer, objective)
    program = Program(spec, jax.devices()[:2])
    params = program.abstract_state.params
    shapes = {parameter_path(p): x for p, x in jax.tree_util.tree_leaves_with_path(params)}
    loaded = {}
    for part, weights in cfg.trainer.initial_weights.items():
        loaded |= weights.instantiate().load(part, shapes, model)
    state = program.first_state(jax.random.key(0), loaded)
    return {parameter_path(p): x for p, x in jax.tree_util.tree_leaves_with_path(state.params)}


def at(cfg, weights):
    for each in cfg.trainer.initial_weights.values():
        each.data_dir = str(weights)
    return cfg


def test_parts_start_from_their_checkpoints_and_the_rest_is_initialized(cfg, weights):
    params = first_params(at(cfg, weights))
    for name, part in (("clip vision", "vision_encoder"), ("qwen3", "decoder")):
        stored = StoredParams(weights / name)
        own = [path for path in params if path.startswith(part)]
        assert set(own) == set(stored.shapes)
        for path in own:
            np.testing.assert_array_equal(params[path], stored.read(path), path)
            assert len(params[path].sharding.device_set) == 2
    cfg.trainer.initial_weights = {}
    drawn = first_params(cfg)
    connector = [path for path in params if path.startswith("connector")]
    for path in connector:
        np.testing.assert_array_equal(params[path], drawn[path], path)
    assert connector and not np.array_equal(
        params["decoder/embedding/weight"], drawn["decoder/embedding/weight"]
    )


def test_the_data_dir_of_initial_weights_is_that_of_the_input(cfg):
    cfg.model.decoder.vocab_size = None
    resolved = Experiment.resolve(cfg)
    folders = {each.data_dir for each in resolved.trainer.initial_weights.values()}
    assert folders == {cfg.input.data_dir}


def test_mismatched_shapes_are_named(cfg, weights):
    at(cfg, weights)
    cfg.model.decoder.set(vocab_size=128, tied_embeddings=True)
    cfg.model.decoder.stack.layer.attention.bias = True
    cfg.model.decoder.stack.layer.attention.rotary.theta = 77.0
    with pytest.raises(ValueError, match=r"initial_weights\['decoder'\]") as error:
        first_params(cfg)
    message = str(error.value)
    assert "missing in the checkpoint:\n    decoder/stack/layer/attention/" in message
    assert "query/bias" in message
    assert "missing in the model:\n    decoder/head/weight" in message
    embedding = "decoder/embedding/weight is [100, 32] in the checkpoint and [128, 32] in the model"
    assert embedding in message
    assert "model.decoder.stack.layer.attention.rotary.theta is 77.0, but was 10000.0" in message


def test_weights_from_before_a_field_have_its_first_default(cfg, weights, tmp_path):
    shutil.copytree(weights, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "qwen3" / "weights.json"
    text, count = re.subn(r'.*"document_mask"?: [Tt]rue"?,\n', "", file.read_text())
    assert count == 2
    file.write_text(text)
    first_params(at(cfg, tmp_path))
    cfg.model.decoder.document_mask = False
    with pytest.raises(ValueError, match="model.decoder.document_mask is False, but was True"):
        first_params(cfg)


def test_rules_name_the_parameters_that_may_differ(cfg, weights):
    at(cfg, weights)
    cfg.model.decoder.set(vocab_size=128, tied_embeddings=True)
    cfg.model.decoder.stack.layer.attention.rotary.theta = 77.0
    cfg.trainer.initial_weights["decoder"].set(
        fresh=["decoder/embedding"],
        unused=["decoder/embedding", "decoder/head"],
        check_config=False,
    )
    params = first_params(cfg)
    stored = StoredParams(weights / "qwen3")
    assert params["decoder/embedding/weight"].shape == (128, 32)
    np.testing.assert_array_equal(params["decoder/norm/scale"], stored.read("decoder/norm/scale"))
    cfg.trainer.initial_weights["decoder"].fresh = ["decoder/embeding"]
    with pytest.raises(ValueError, match="decoder/embedding"):
        first_params(cfg)


def test_missing_weights_and_missing_parts_are_named(cfg, weights):
    at(cfg, weights)
    cfg.trainer.initial_weights["decoder"].path = "hf"
    with pytest.raises(ValueError, match="neither weights.json nor a complete checkpoint"):
        first_params(cfg)
    cfg.trainer.initial_weights = {"encoder": cfg.trainer.initial_weights["vision_encoder"]}
    with pytest.raises(ValueError, match="has no 'encoder'; its parts are connector, decoder"):
        first_params(cfg)


@pytest.mark.parametrize("moe_every", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_an_upcycled_sparse_decoder_computes_the_same_as_its_dense_source(cfg, weights, moe_every):
    at(cfg, weights)
    dense = cfg.model.decoder.clone()
    cfg.model.decoder.set(moe=MoE.default_config().set(num_experts=4), moe_every=moe_every)
    with pytest.raises(ValueError, match="if that decoder is dense, upcycle=True copies"):
        first_params(cfg)
    cfg.trainer.initial_weights["decoder"].upcycle = True
    params = below(first_params(cfg), "decoder/")
    stored = StoredParams(weights / "qwen3")
    theirs = below({path: stored.read(path) for path in stored.shapes}, "decoder/")
    # Equals the result of the pure function on whole trees.
    expected = parity.flat(upcycle(nested(theirs), nested(params)))
    assert expected.keys() == params.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(params[path], value, path)
    tokens = jnp.asarray(random_tokens(100, (2, 12)), jnp.int32)
    logits = [
        decoder_logits(with_params(decoder, values), tokens)
        for decoder, values in ((dense, theirs), (cfg.model.decoder, params))
    ]
    assert compare("logits", logits[1], logits[0]).difference < 4e-6 * np.abs(logits[0]).max()
    cfg.trainer.initial_weights["decoder"].set(
        fresh=["decoder/norm"], unused=["decoder/norm", "decoder/stack/layer/.*/down/kernel"]
    )
    with pytest.raises(
        ValueError, match=r"missing in the checkpoint:\n +decoder/stack/layer/feed_forward/down"
    ):
        first_params(cfg)
    cfg.model.decoder.moe.experts.activation = Activation.GELU
    with pytest.raises(ValueError, match=r"feed_forward\.activation is .*GELU.*, but was .*SILU"):
        first_params(cfg)


def test_upcycling_a_part_without_experts_is_an_error(cfg, weights):
    at(cfg, weights).trainer.initial_weights["decoder"].upcycle = True
    with pytest.raises(ValueError, match=r"upcycle=True: the model has no experts in 'decoder'"):
        first_params(cfg)


def test_positions_of_another_grid_are_resized_as_in_open_clip_if_allowed(cfg, weights):
    at(cfg, weights).model.vision_encoder.image_size = 24
    name = "vision_encoder/positions/positions"
    shapes = rf"{name} is \[16, 32\] in the checkpoint and \[36, 32\] in the model"
    message = f"{shapes}; resize_positions=True resizes it"
    with pytest.raises(ValueError, match=message):
        first_params(cfg)
    cfg.trainer.initial_weights["vision_encoder"].resize_positions = True
    params, stored = first_params(cfg), StoredParams(weights / "clip vision")
    grid = torch.from_numpy(stored.read(name)).T.unflatten(1, (4, 4))[None]
    expected = F.interpolate(grid, (6, 6), mode="bicubic", antialias=True)[0].flatten(1).T
    np.testing.assert_allclose(params[name], expected, atol=1e-5)
    other = "vision_encoder/class_token/position"
    np.testing.assert_array_equal(params[other], stored.read(other))


def test_all_parts_of_a_run_start_at_a_higher_resolution():
    run = Path(__file__).parents[1] / "stored_runs" / "mm1_tiny"
    cfg = load_experiment(run)
    stored = StoredParams(run)
    cfg.model.vision_encoder.image_size *= 3
    cfg.trainer.initial_weights = {
        part: InitialWeights.default_config().set(path=str(run))
        for part in ("vision_encoder", "connector", "decoder")
    }
    for part in ("vision_encoder", "connector"):
        with pytest.raises(ValueError, match=f"{part}/positions.*resize_positions=True"):
            first_params(cfg)
        cfg.trainer.initial_weights[part].resize_positions = True
    params = first_params(cfg)
    for path, value in params.items():
        expected = torch.from_numpy(np.asarray(stored.read(path)))
        if path.endswith("positions/positions"):
            grid = expected.T.unflatten(1, (2, 2))[None]
            resized = F.interpolate(grid, (6, 6), mode="bicubic", antialias=True)
            expected = resized[0].flatten(1).T
        np.testing.assert_allclose(value, expected, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("image_size", [448, 560, 672])
def test_positions_of_378_pixels_become_those_of_torch(image_size):
    positions = np.random.default_rng(0).normal(size=(27 * 27, 8)).astype(np.float32)
    side = image_size // 14
    grid = torch.from_numpy(positions).T.unflatten(1, (27, 27))[None]
    # Antialiasing does not change an enlargement; torch's coefficient is -0.5 only with it.
    expected = F.interpolate(grid, (side, side), mode="bicubic", antialias=True)[0].flatten(1).T
    resized = resized_positions(jnp.asarray(positions), side**2)
    np.testing.assert_allclose(resized, expected, atol=1e-5)


def below(params, prefix):
    return {path.removeprefix(prefix): x for path, x in params.items() if path.startswith(prefix)}


def nested(params):
    tree = {}
    for path, value in params.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = jnp.asarray(value)
    return tree


@pytest.fixture(scope="module")
def whole_run():
    """The output folder of a stored run of `mm1_tiny`, and its parameters by path."""
    folder = Path(__file__).parents[1] / "stored_runs" / "mm1_tiny"
    return folder, StoredParams(folder)


def whole_config(folder, **fields):
    cfg = load_experiment(folder)
    entry = InitialWeights.default_config().set(path=str(folder.absolute()), **fields)
    cfg.trainer.initial_weights = {"model": entry}
    return cfg


def test_one_entry_starts_the_whole_model_from_a_run(whole_run):
    folder, stored = whole_run
    cfg = whole_config(folder)
    params = first_params(cfg)
    assert params.keys() == stored.shapes.keys()
    for path, value in params.items():
        np.testing.assert_array_equal(value, stored.read(path), path)


def test_one_field_on_the_command_line_names_the_run(whole_run):
    folder, _ = whole_run
    overrides = {"trainer.initial_weights.model.path": str(folder.absolute())}
    weights = Launch("mm1_3b_chat", None, overrides).resolved_config().trainer.initial_weights
    assert {part: each.path for part, each in weights.items()} == {"model": str(folder.absolute())}


def test_the_whole_model_has_rules_for_what_differs(whole_run):
    folder, stored = whole_run
    cfg = whole_config(folder)
    cfg.model.connector.hidden_dim = 32
    with pytest.raises(ValueError, match="connector/read_out.* in the checkpoint and"):
        first_params(cfg)
    rules = {"fresh": ("connector",), "unused": ("connector",)}
    cfg.trainer.initial_weights["model"].set(**rules)
    params = first_params(cfg)
    path = "decoder/embedding/weight"
    np.testing.assert_array_equal(params[path], stored.read(path))
    assert params["connector/read_out/0/kernel"].shape[0] == 32


def test_the_whole_model_excludes_entries_of_parts(whole_run):
    folder, _ = whole_run
    cfg = whole_config(folder)
    cfg.trainer.initial_weights["decoder"] = InitialWeights.default_config().set(path="elsewhere")
    with pytest.raises(ValueError, match="has 'model', which is all parts, and .'decoder'"):
        Experiment.resolve(cfg)
    cfg = whole_config(folder, source="decoder")
    with pytest.raises(ValueError, match="leave it None, or name the part in place of 'model'"):
        first_params(cfg)
