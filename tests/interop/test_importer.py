"""Foreign checkpoints into folders of weights: nothing lost, same outputs, errors with names."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from foreign_models import MODELS, TEXT, assert_goes_back, save
from parity import assert_equal, randomise
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch_file
from torch_modules import AimTrunk
from transformers import MistralConfig, MistralForCausalLM

from mm1_jax.checkpoints.weights_folder import StoredParams
from mm1_jax.interop import compare
from mm1_jax.interop.compare import (
    FolderModel,
    compare_tower,
    pixel_values,
    random_images,
    with_params,
)
from mm1_jax.interop.exporter import export_native, parts_of_weights
from mm1_jax.interop.families import Changes
from mm1_jax.interop.importer import import_checkpoint
from mm1_jax.interop.native import native_model
from mm1_jax.interop.passthrough import Passthrough
from mm1_jax.interop.vision import ACTIVATIONS
from mm1_jax.layers.feed_forward import Activation


@pytest.mark.parametrize("name", MODELS)
def test_outputs_of_an_import_equal_those_of_the_source(name, tmp_path):
    save(name, tmp_path / "hf")
    imported = import_checkpoint(tmp_path / "hf", tmp_path / "ours")
    assert imported.not_compared is None
    assert imported.comparison.is_good
    # Models as small as these are far below the bound.
    assert imported.comparison.difference < 4e-6 * imported.comparison.scale
    # Features of pairs are unit vectors.
    assert imported.comparison.scale > (0.1 if name in ("clip", "siglip") else 0.5)
    checks = json.loads((tmp_path / "ours" / "weights.json").read_text())["checks"]
    assert "bit for bit" in checks and "largest difference" in checks


def open_clip_names(state):
    """Renames the state of a CLIPVisionModel as in open_clip, and adds tensors of a text tower."""
    names = (
        ("embeddings.class_embedding", "class_embedding"),
        ("embeddings.patch_embedding", "conv1"),
        ("embeddings.position_embedding.weight", "positional_embedding"),
        ("pre_layrnorm", "ln_pre"),
        ("post_layernorm", "ln_post"),
        ("encoder.layers", "transformer.resblocks"),
        ("layer_norm", "ln_"),
        ("self_attn.out_proj", "attn.out_proj"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
    )
    result = {"visual.proj": torch.zeros(32, 8), "logit_scale": torch.zeros(1)}
    result["transformer.resblocks.0.ln_1.weight"] = torch.zeros(16)
    for name, value in state.items():
        if ".q_proj." in name:
            parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            name, value = name.replace("self_attn.q_proj.", "attn.in_proj_"), torch.cat(parts)
        elif "k_proj." in name or "v_proj." in name:
            continue
        for theirs, ours in names:
            name = name.replace(theirs, ours)
        result[f"visual.{name}"] = value
    return {name: value.contiguous() for name, value in result.items()}


def test_an_open_clip_encoder_has_the_features_of_the_same_encoder_in_transformers(tmp_path):
    tower = save("clip vision", tmp_path / "hf")
    folder = tmp_path / "open_clip"
    folder.mkdir()
    save_torch_file(open_clip_names(tower.state_dict()), folder / "open_clip_model.safetensors")
    vision = {"image_size": 16, "layers": 3, "width": 32, "head_width": 8, "patch_size": 4}
    vision["mlp_ratio"] = 1.5
    config = {"model_cfg": {"quick_gelu": True, "vision_cfg": vision}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    imported = import_checkpoint(folder, tmp_path / "ours")
    assert imported.comparison is None and "no implementation" in imported.not_compared
    stored = StoredParams(tmp_path / "ours")
    cfg = parts_of_weights(stored)["vision_encoder"]
    params = {path.partition("/")[2]: stored.read(path) for path in stored.shapes}
    assert compare_tower(cfg, params, FolderModel(tmp_path / "hf")).is_good
    assert_goes_back(folder, tmp_path / "ours", tmp_path / "again")
    # Exports the same tower for transformers, with the norm of its class token.
    passthrough = Passthrough(tmp_path / "ours")
    model = native_model({"vision_encoder": cfg}, passthrough.specs)
    export_native(
        stored, model, {"vision_encoder": cfg}, tmp_path / "tower", passthrough=passthrough
    )
    back = type(tower).from_pretrained(tmp_path / "tower").state_dict()
    assert back.keys() == tower.state_dict().keys()
    assert all(torch.equal(back[name], value) for name, value in tower.state_dict().items())


def test_an_aim_trunk_has_the_features_of_the_reference(tmp_path):
    trunk = randomise(AimTrunk(256, 2, 2, patch_size=14))
    names = (("proj.", "preprocessor.patchifier.proj."), ("norm.", "preprocessor.patchifier.norm."))
    state = {}
    for name, value in trunk.state_dict().items():
        for theirs, ours in names:
            if name.startswith(theirs):
                name = name.replace(theirs, ours)
        name = re.sub(r"blocks\.(\d)\.(qkv|proj)", r"trunk.blocks.\1.attn.\2", name)
        name = re.sub(r"^blocks\.(\d)\.fc", r"trunk.blocks.\1.mlp.fc", name)
        name = re.sub(r"^(blocks|post_trunk_norm)", r"trunk.\1", name)
        state[name] = value
    state["head.linear.weight"] = torch.zeros(3, 256)
    (tmp_path / "aim").mkdir()
    save_torch_file(state, tmp_path / "aim" / "model.safetensors")
    import_checkpoint(tmp_path / "aim", tmp_path / "ours")
    assert_goes_back(tmp_path / "aim", tmp_path / "ours", tmp_path / "again")
    stored = StoredParams(tmp_path / "ours")
    cfg = parts_of_weights(stored)["vision_encoder"]
    params = {path.partition("/")[2]: stored.read(path) for path in stored.shapes}
    images = random_images(224, count=1)
    pixels = torch.from_numpy(pixel_values(images, cfg.pixel_mean, cfg.pixel_std))
    with torch.no_grad():
        expected = trunk(pixels)
    assert_equal(with_params(cfg, params)(jnp.asarray(images)), expected)


def test_shards_in_bfloat16_keep_their_dtype(tmp_path):
    save("llama", tmp_path / "hf", dtype=torch.bfloat16, max_shard_size="20KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 2
    assert import_checkpoint(tmp_path / "hf", tmp_path / "ours").comparison.is_good
    stored = StoredParams(tmp_path / "ours")
    assert {dtype.name for dtype in stored.dtypes.values()} == {"bfloat16"}


@pytest.mark.parametrize("moe_every", [1, 2])
def test_an_upcycled_decoder_computes_the_same_as_the_dense_one(moe_every, tmp_path):
    save("llama", tmp_path / "hf")
    changes = Changes(num_experts=4, moe_every=moe_every)
    imported = import_checkpoint(tmp_path / "hf", tmp_path / "ours", changes=changes)
    assert imported.comparison.is_good
    stored = StoredParams(tmp_path / "ours")
    sparse = "decoder/stack/layer" if moe_every == 1 else "decoder/stack/last_layer"
    kernels = stored.read(f"{sparse}/feed_forward/experts/down")
    assert kernels.shape[1] == 4 and np.ptp(kernels, axis=1).max() == 0
    assert stored.read(f"{sparse}/feed_forward/router").std() > 0.1


@pytest.mark.parametrize("name", ["llama", "qwen3 tied"])
def test_new_rows_of_the_vocabulary_are_the_mean_of_the_others(name, tmp_path):
    save(name, tmp_path / "hf")
    imported = import_checkpoint(
        tmp_path / "hf", tmp_path / "ours", changes=Changes(vocab_size=128)
    )
    assert imported.comparison.is_good
    table = StoredParams(tmp_path / "ours").read("decoder/embedding/weight")
    np.testing.assert_allclose(table[100:], np.tile(table[:100].mean(0), (28, 1)), atol=1e-6)


def damage(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


KEY = "model.layers.2.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(KEY), rf"missing:\n    {KEY}"),
        (lambda t: t.update(extra=t["model.norm.weight"]), "unknown:\n    extra"),
        (
            lambda t: t.update({KEY: t[KEY][:8].copy()}),
            rf"misshapen:\n    {KEY} is \[8, 32\], expected \[16, 32\]",
        ),
        (
            lambda t: t.update({KEY: t[KEY].astype(np.int32)}),
            rf"not floating-point:\n    {KEY} \(int32\)",
        ),
        (lambda t: t[KEY].fill(np.nan), f"{KEY} holds values that are not finite"),
    ],
    ids=["missing", "extra", "misshapen", "integer", "not finite"],
)
def test_a_mismatched_tensor_is_named_and_no_output_remains(change, message, tmp_path):
    save("llama", tmp_path / "hf")
    damage(tmp_path / "hf", change)
    with pytest.raises(ValueError, match=message):
        import_checkpoint(tmp_path / "hf", tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_truncated_shard_names_the_truncated_tensor(tmp_path):
    save("llama", tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"the tensor model\.norm\.weight .* it is truncated"):
        import_checkpoint(tmp_path / "hf", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_missing_shard_is_named(tmp_path):
    save("llama", tmp_path / "hf", max_shard_size="40KB")
    shard = sorted((tmp_path / "hf").glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name}: this shard of the checkpoint is missing"):
        import_checkpoint(tmp_path / "hf", tmp_path / "ours")


def test_an_unsupported_field_is_named(tmp_path):
    save("llama", tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "rope_parameters": {"rope_type": "yarn"}}))
    with pytest.raises(ValueError, match='rope_parameters.rope_type="yarn"'):
        import_checkpoint(tmp_path / "hf", tmp_path / "ours")


def test_a_conversion_with_different_outputs_is_rejected(tmp_path, monkeypatch):
    save("clip with gelu", tmp_path / "hf")
    monkeypatch.setitem(ACTIVATIONS, "gelu", Activation.GELU_TANH)
    with pytest.raises(ValueError, match="the conversion is wrong. features of random images"):
        import_checkpoint(tmp_path / "hf", tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_pickles_are_rejected_unless_allowed(tmp_path):
    model = save("llama", tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save(state, tmp_path / "hf" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: a pickle.*--allow_pickle"):
        import_checkpoint(tmp_path / "hf", tmp_path / "ours")
    imported = import_checkpoint(tmp_path / "hf", tmp_path / "ours", allow_pickle=True)
    assert imported.comparison.is_good


def rename(folder, change):
    """Renames the tensors in the single file of a checkpoint."""
    damage(folder, lambda t: [t.update({change(name): t.pop(name)}) for name in list(t)])


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "model."])
def test_tensors_with_a_prefix_are_compared_without_it(prefix, tmp_path):
    save("llama", tmp_path / "hf")
    rename(tmp_path / "hf", lambda name: prefix + name)
    imported = import_checkpoint(tmp_path / "hf", tmp_path / "ours")
    assert imported.comparison.is_good and repr(prefix) in " ".join(imported.notes)
    assert_goes_back(tmp_path / "hf", tmp_path / "ours", tmp_path / "again")


def test_a_wrapper_in_tensor_names_is_named(tmp_path):
    save("llama", tmp_path / "hf")
    rename(tmp_path / "hf", lambda name: name.replace("self_attn.", "self_attn._orig_mod."))
    with pytest.raises(ValueError, match="have _orig_mod inside their names"):
        import_checkpoint(tmp_path / "hf", tmp_path / "ours")


def test_randomly_initialized_weights_are_never_compared(tmp_path, monkeypatch):
    save("llama", tmp_path / "hf")
    read = compare.torch_tensors
    monkeypatch.setattr(
        compare, "torch_tensors", lambda t: ((n, v) for n, v in read(t) if n != KEY)
    )
    imported = import_checkpoint(tmp_path / "hf", tmp_path / "ours")
    assert imported.comparison is None
    assert imported.not_compared == f"transformers lacks 1 of its parameters, such as {KEY}"


def test_shards_without_an_index_and_single_files_are_compared_too(tmp_path):
    save("llama", tmp_path / "hf", max_shard_size="20KB")
    (tmp_path / "hf" / "model.safetensors.index.json").unlink()
    assert import_checkpoint(tmp_path / "hf", tmp_path / "ours").comparison.is_good
    save("llama", tmp_path / "one")
    file = tmp_path / "one" / "model.safetensors"
    assert import_checkpoint(file, tmp_path / "of_file").comparison.is_good


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": "../x"}}', "[" * 10**5]
)
def test_an_invalid_index_is_named(content, tmp_path):
    save("llama", tmp_path / "hf", max_shard_size="40KB")
    index = tmp_path / "hf" / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(index))):
        import_checkpoint(tmp_path / "hf", tmp_path / "ours")


def test_two_output_layers_of_a_tied_decoder_must_be_the_same(tmp_path):
    save("llama 3.2", tmp_path / "hf")
    head, table = "lm_head.weight", "model.embed_tokens.weight"
    damage(tmp_path / "hf", lambda t: t.update({head: t[table].copy()}))
    assert import_checkpoint(tmp_path / "hf", tmp_path / "ours").comparison.is_good
    damage(tmp_path / "hf", lambda t: t.update({head: 2 * t[table]}))
    with pytest.raises(ValueError, match="lm_head.weight and model.embed_tokens.weight differ"):
        import_checkpoint(tmp_path / "hf", tmp_path / "again")


def test_a_sliding_window_is_reported_and_limits_the_comparison(tmp_path):
    model = MistralForCausalLM(MistralConfig(**TEXT, sliding_window=8))
    randomise(model).save_pretrained(tmp_path / "hf")
    imported = import_checkpoint(tmp_path / "hf", tmp_path / "ours")
    assert imported.comparison.is_good and "last 8 positions" in imported.notes[0]


def test_omitted_sizes_are_reported_if_the_tensors_do_not_fit(tmp_path):
    save("llama", tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text())
    del config["num_attention_heads"]
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="leaves out num_attention_heads=32 .*defaults"):
        import_checkpoint(tmp_path / "hf", tmp_path / "ours")


def test_a_decoder_whose_depth_differs_from_its_config_is_named(tmp_path):
    save("llama", tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 5}))
    with pytest.raises(ValueError, match="num_hidden_layers=5: .* tensors of 4 layers"):
        import_checkpoint(tmp_path / "hf", tmp_path / "ours")


def test_without_torch_an_import_reports_that_nothing_was_compared(tmp_path, monkeypatch):
    save("llama", tmp_path / "hf")
    monkeypatch.setattr("mm1_jax.interop.compare.importlib.util.find_spec", lambda name: None)
    imported = import_checkpoint(tmp_path / "hf", tmp_path / "ours")
    assert imported.comparison is None and "not installed" in imported.not_compared
    checks = json.loads((tmp_path / "ours" / "weights.json").read_text())["checks"]
    assert "logits were not compared" in checks
