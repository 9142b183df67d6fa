"""CLIPs with their text towers, and trunks of AIMv2: outputs, round trips, files and errors."""

import json
import re
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from foreign_models import TOWER, assert_goes_back, save
from make_open_clip_models import MODELS as OPEN_CLIPS
from make_open_clip_models import TARGET as OPEN_CLIP_ARRAYS
from parity import assert_equal, randomise
from safetensors.numpy import load_file, save_file
from test_exporter import assert_same_state
from transformers import Aimv2Config, Aimv2Model, Aimv2VisionConfig, Aimv2VisionModel

from mm1_jax.checkpoints.weights_folder import StoredParams
from mm1_jax.commands import convert_checkpoint
from mm1_jax.interop.clip import clip_of_parts, raise_if_texts_end_otherwise
from mm1_jax.interop.compare import pixel_values, random_images, with_params
from mm1_jax.interop.exporter import export_native, facts_of_weights, parts_of_weights
from mm1_jax.interop.families import Changes
from mm1_jax.interop.importer import ParamsOf, import_checkpoint
from mm1_jax.interop.native import EncoderFacts, native_model, open_clip
from mm1_jax.interop.passthrough import Passthrough
from mm1_jax.layers.attention import Pattern
from mm1_jax.layers.feed_forward import Activation
from mm1_jax.models.image_pooling import MeanPooling
from mm1_jax.models.text_encoder import TextPooling

PAIRS = ("clip", "siglip")
AIMV2 = {**TOWER, "hidden_size": 32, "num_attention_heads": 4}


def our_clip(folder):
    """Returns the model of a folder of weights, and its parts."""
    stored = StoredParams(folder)
    parts = parts_of_weights(stored)
    cfg = clip_of_parts(parts, has_bias="logit_bias" in stored.shapes)
    return with_params(cfg, ParamsOf(stored)), parts


@jax.jit
def outputs(model, images, tokens, lengths):
    features = model.encode_image(images), model.encode_text(tokens, lengths)
    logits = model.scale() * features[0] @ features[1].T
    return *features, logits if model.logit_bias is None else logits + model.logit_bias[...]


def texts(num_rows, length, eos, padding):
    lengths = np.array([length, 3, 5], np.int32)
    tokens = np.random.default_rng(0).integers(3, num_rows - 1, (3, length)).astype(np.int32)
    tokens[np.arange(3), lengths - 1] = eos
    tokens[np.arange(length)[None] >= lengths[:, None]] = padding
    return tokens, lengths


def export(folder, output, **options):
    """Exports a folder of weights in the format that is chosen by itself."""
    stored, passthrough = StoredParams(folder), Passthrough(folder)
    parts = parts_of_weights(stored)
    facts = None
    if "text_encoder" in parts:
        facts = facts_of_weights(stored, None, passthrough)
    model = native_model(parts, passthrough.specs, facts)
    assert not isinstance(model, str), model
    return export_native(stored, model, parts, output, passthrough=passthrough, **options)


def same_params(ours, others):
    ours, others = StoredParams(ours), StoredParams(others)
    assert ours.shapes == others.shapes and ours.dtypes == others.dtypes
    return all(ours.read(path).tobytes() == others.read(path).tobytes() for path in ours.shapes)


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_of_towers_has_the_logits_of_transformers_and_goes_back(name, tmp_path):
    theirs = save(name, tmp_path / "hf").eval()
    import_checkpoint(tmp_path / "hf", tmp_path / "ours", skip_comparison=True)
    model, parts = our_clip(tmp_path / "ours")
    encoder, text = parts["vision_encoder"], parts["text_encoder"]
    eos = theirs.text_model.eos_token_id = text.vocab_size - 1
    padding = theirs.config.text_config.pad_token_id
    tokens, lengths = texts(text.vocab_size, text.max_length, eos, padding)
    images = random_images(encoder.image_size)
    pixels = torch.from_numpy(pixel_values(images, encoder.pixel_mean, encoder.pixel_std))
    if name == "siglip":
        pixels = torch.nn.functional.pad(pixels, (0, 1, 0, 1))
    with torch.no_grad():
        expected = theirs(input_ids=torch.from_numpy(tokens).long(), pixel_values=pixels)
    found = outputs(model, images, tokens, lengths)
    assert_equal(found[0], expected.image_embeds)
    assert_equal(found[1], expected.text_embeds)
    np.testing.assert_allclose(found[2], expected.logits_per_image, rtol=1e-5, atol=1e-5)
    exported = export(tmp_path / "ours", tmp_path / "back")
    assert exported.comparison.is_good and exported.model_type == name
    back, info = type(theirs).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same_state(theirs.state_dict(), back.state_dict())
    import_checkpoint(tmp_path / "back", tmp_path / "again", skip_comparison=True)
    assert same_params(tmp_path / "ours", tmp_path / "again")


def open_clip_source(name, folder):
    """Writes a model of open_clip; returns its inputs and outputs."""
    arrays = np.load(OPEN_CLIP_ARRAYS)
    arrays = {k.removeprefix(f"{name}/"): arrays[k] for k in arrays if k.startswith(f"{name}/")}
    folder.mkdir()
    weights = {k.removeprefix("weights/"): arrays[k] for k in arrays if k.startswith("weights/")}
    save_file(weights, folder / "open_clip_model.safetensors")
    config = {
        "model_cfg": json.loads(str(arrays["config"])),
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return arrays


@pytest.mark.parametrize("name", OPEN_CLIPS)
def test_a_pair_of_towers_has_the_logits_of_open_clip_and_goes_back(name, tmp_path):
    arrays = open_clip_source(name, tmp_path / "theirs")
    import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    assert_goes_back(tmp_path / "theirs", tmp_path / "ours", tmp_path / "unchanged")
    model, parts = our_clip(tmp_path / "ours")
    tokens = arrays["tokens"].astype(np.int32)
    lengths = np.sum(tokens > 0, axis=1, dtype=np.int32)
    found = outputs(model, arrays["images"], tokens, lengths)
    for ours, theirs in zip(found, ("image_features", "text_features", "logits"), strict=True):
        assert_equal(ours, torch.from_numpy(arrays[theirs]))
    stored = StoredParams(tmp_path / "ours")
    facts = facts_of_weights(stored, None, Passthrough(tmp_path / "ours"))
    assert facts.resize == "squash"
    written = open_clip(parts, facts)
    export_native(stored, written, parts, tmp_path / "back")
    before, after = (
        load_file(tmp_path / each / "open_clip_model.safetensors") for each in ("theirs", "back")
    )
    # Names and shapes are those of the class `CLIP`, with scalars of no dimension.
    before = {key.removeprefix("text."): value for key, value in before.items()}
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert value.tobytes() == after[key].tobytes()
        assert value.shape == after[key].shape or key.startswith("logit_"), key
    import_checkpoint(tmp_path / "back", tmp_path / "again")
    assert same_params(tmp_path / "ours", tmp_path / "again")
    config = json.loads((tmp_path / "back" / "open_clip_config.json").read_text())
    assert config["preprocess_cfg"]["mean"] == [0.5] * 3
    assert config["model_cfg"]["text_cfg"].get("eos_id") == (2 if name == "bias" else None)


def test_an_openai_model_of_open_clip_becomes_a_clip_model_of_transformers(tmp_path):
    arrays = open_clip_source("openai", tmp_path / "theirs")
    import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    exported = export(tmp_path / "ours", tmp_path / "hf")
    assert exported.model_type == "clip" and exported.comparison.is_good
    model = transformers.CLIPModel.from_pretrained(tmp_path / "hf").eval()
    pixels = torch.from_numpy(pixel_values(arrays["images"], [0.5] * 3, [0.5] * 3))
    with torch.no_grad():
        found = model(input_ids=torch.from_numpy(arrays["tokens"]), pixel_values=pixels)
    np.testing.assert_allclose(found.logits_per_image, arrays["logits"], rtol=1e-5, atol=1e-5)
    processor = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 8, "width": 8} and processor["image_mean"] == [0.5] * 3
    import_checkpoint(tmp_path / "hf", tmp_path / "again", skip_comparison=True)
    assert same_params(tmp_path / "ours", tmp_path / "again")


AIMV2_MODELS = {
    "vision": lambda: Aimv2VisionModel(Aimv2VisionConfig(**AIMV2)),
    "native": lambda: Aimv2VisionModel(Aimv2VisionConfig(**AIMV2, is_native=True, use_head=False)),
    "pair": lambda: Aimv2Model(
        Aimv2Config(
            vision_config=AIMV2,
            text_config={
                "vocab_size": 40,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            },
        )
    ),
}


@pytest.mark.parametrize("name", AIMV2_MODELS)
def test_a_trunk_of_aimv2_has_the_features_of_transformers_and_goes_back(name, tmp_path):
    theirs = randomise(AIMV2_MODELS[name]())
    theirs.save_pretrained(tmp_path / "hf")
    imported = import_checkpoint(tmp_path / "hf", tmp_path / "ours")
    assert imported.comparison.is_good and imported.comparison.scale > 0.5
    assert imported.comparison.difference < 4e-6 * imported.comparison.scale
    assert_goes_back(tmp_path / "hf", tmp_path / "ours", tmp_path / "unchanged")
    exported = export(tmp_path / "ours", tmp_path / "back")
    assert exported.comparison.is_good and exported.model_type == "aimv2_vision_model"
    tower = theirs.vision_model if name == "pair" else theirs
    back, info = Aimv2VisionModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same_state(tower.state_dict(), back.state_dict())


def test_names_of_apple_give_the_same_trunk_of_aimv2(tmp_path):
    theirs = randomise(AIMV2_MODELS["vision"]())
    theirs.save_pretrained(tmp_path / "hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "ours", skip_comparison=True)
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    renamed = {
        "preprocessor.patchifier.proj.weight": state["embeddings.patch_embed.weight"],
        "preprocessor.patchifier.proj.bias": state["embeddings.patch_embed.bias"],
        "preprocessor.patchifier.norm.weight": state["embeddings.rms_norm.weight"],
        "preprocessor.pos_embed": state["embeddings.position_embedding.weight"][None],
        "trunk.post_trunk_norm.weight": state["rms_norm.weight"],
    }
    layers = {"attn.proj": "attention.out_proj", "norm_1": "rms_norm1", "norm_2": "rms_norm2"}
    layers |= {"mlp.fc1": "ffn.gate_proj", "mlp.fc2": "ffn.down_proj", "mlp.fc3": "ffn.up_proj"}
    for i in range(TOWER["num_hidden_layers"]):
        ours, name = f"trunk.blocks.{i}", f"encoder.layers.{i}"
        parts = [state[f"{name}.attention.{each}_proj.weight"] for each in "qkv"]
        renamed[f"{ours}.attn.qkv.weight"] = np.concatenate(parts)
        for apple, hf in layers.items():
            renamed[f"{ours}.{apple}.weight"] = state[f"{name}.{hf}.weight"]
    (tmp_path / "apple").mkdir()
    save_file(renamed, tmp_path / "apple" / "model.safetensors")
    config = {"architectures": ["AIMv2Model"], "model_type": "aimv2", **AIMV2}
    (tmp_path / "apple" / "config.json").write_text(json.dumps(config))
    import_checkpoint(tmp_path / "apple", tmp_path / "again")
    assert same_params(tmp_path / "ours", tmp_path / "again")
    assert_goes_back(tmp_path / "apple", tmp_path / "again", tmp_path / "unchanged")


def test_the_vision_tower_of_a_pair_is_imported_alone_if_asked_for(tmp_path):
    save("clip", tmp_path / "hf")
    import_checkpoint(
        tmp_path / "hf", tmp_path / "ours", changes=Changes(vision_only=True), skip_comparison=True
    )
    stored = StoredParams(tmp_path / "ours")
    assert {path.partition("/")[0] for path in stored.shapes} == {"vision_encoder"}
    assert_goes_back(tmp_path / "hf", tmp_path / "ours", tmp_path / "unchanged")


def changed(folder, *path, **values):
    """Sets fields in a section of the JSON file at a path."""
    *sections, name = path
    file = folder / name
    content = json.loads(file.read_text())
    place = content
    for section in reversed(sections):
        place = place[section]
    place.update(values)
    file.write_text(json.dumps(content))


def test_an_unsupported_text_tower_is_named_with_the_way_around_it(tmp_path):
    open_clip_source("openai", tmp_path / "theirs")
    name = ("text_cfg", "model_cfg", "open_clip_config.json")
    changed(tmp_path / "theirs", *name, hf_model_name="roberta-base")
    with pytest.raises(ValueError, match=r'text_cfg.hf_model_name="roberta-base".*--vision_only'):
        import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    arguments = ["import", f"--source={tmp_path / 'theirs'}", "--vision_only"]
    assert convert_checkpoint.main([*arguments, f"--output={tmp_path / 'ours'}"]) == 0
    changed(tmp_path / "theirs", *name, hf_model_name=None, no_causal_mask=True)
    with pytest.raises(ValueError, match="no_causal_mask=true: .*only with pool_type 'last'"):
        import_checkpoint(tmp_path / "theirs", tmp_path / "again")


def pooled_by_mean(parts):
    parts["text_encoder"].pooling = TextPooling.MEAN


def bidirectional(parts):
    parts["text_encoder"].stack.layer.attention.pattern = Pattern.BIDIRECTIONAL


def other_activation(parts):
    parts["text_encoder"].stack.layer.feed_forward.activation = Activation.GELU


@pytest.mark.parametrize(
    ("change", "facts", "message"),
    [
        (
            pooled_by_mean,
            EncoderFacts(),
            r"text_encoder\.pooling is TextPooling\.MEAN, and TextPooling\.EOS in a CLIPModel.*"
            r"open_clip: text_encoder\.pooling is TextPooling\.MEAN",
        ),
        (
            # In open_clip, the tokens of such a tower attend to padding.
            bidirectional,
            EncoderFacts(),
            r"pattern is Pattern\.BIDIRECTIONAL, and Pattern\.CAUSAL in a CLIPModel.*"
            r"open_clip: .*no_causal_mask=true: with pool_type='argmax', texts attend to padding",
        ),
        (
            other_activation,
            EncoderFacts(eos=2),
            "ends texts by the id 2.*open_clip: quick_gelu of open_clip is that of both towers",
        ),
    ],
)
def test_a_model_that_no_library_has_is_named_by_its_field(change, facts, message, tmp_path):
    save("clip", tmp_path / "hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "ours", skip_comparison=True)
    parts = parts_of_weights(StoredParams(tmp_path / "ours"))
    change(parts)
    assert re.search(message, native_model(parts, facts=facts))


def test_a_model_that_only_open_clip_has_is_exported_for_it(tmp_path):
    save("clip", tmp_path / "hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "ours", skip_comparison=True)
    parts = parts_of_weights(StoredParams(tmp_path / "ours"))
    assert native_model(parts, facts=EncoderFacts(eos=39)).library == "transformers"
    model = native_model(parts, facts=EncoderFacts(eos=2))
    assert model.library == "open_clip" and model.config["model_cfg"]["text_cfg"]["eos_id"] == 2
    assert native_model(parts, facts=EncoderFacts(has_bias=True)).library == "open_clip"
    parts["image_pooling"] = MeanPooling.default_config().set(input_dim=32)
    model = native_model(parts)
    assert model.config["model_cfg"]["vision_cfg"]["pool_type"] == "avg"


@pytest.mark.parametrize(
    ("config", "eos", "message"),
    [
        # The id 2 stands for the highest id of a text.
        ({"text_config": {"eos_token_id": 2}}, 39, None),
        ({"text_config": {"eos_token_id": 2}}, 2, "at its highest id, of up to 39, .* texts by 2"),
        ({"text_config": {"eos_token_id": 7}}, 7, None),
        ({"text_config": {"eos_token_id": 7}}, 39, "at the id 7, .* ends texts by 39"),
        ({"model_cfg": {"text_cfg": {}}}, 2, "pool_type: .* its highest id"),
        ({"model_cfg": {"text_cfg": {"pool_type": "eos", "eos_id": 2}}}, 2, None),
        ({"model_cfg": {"text_cfg": {"pool_type": "last"}}}, 2, None),
    ],
)
def test_a_tokenizer_ends_texts_where_the_feature_is_read(config, eos, message):
    check = nullcontext() if message is None else pytest.raises(ValueError, match=message)
    with check:
        raise_if_texts_end_otherwise({"model_type": "clip", **config}, eos, 40)


@pytest.mark.parametrize("legacy", [True, False], ids=["highest id", "eos"])
def test_the_feature_of_a_text_is_read_where_transformers_does(legacy, tmp_path):
    """Texts contain ids above the one that ends them, and are padded with it."""
    theirs = save("clip", tmp_path / "hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "ours", skip_comparison=True)
    model, parts = our_clip(tmp_path / "ours")
    text = parts["text_encoder"]
    eos = text.vocab_size - 1 if legacy else text.vocab_size // 2
    tokens, lengths = texts(text.vocab_size, text.max_length, eos, eos)
    is_before = np.arange(text.max_length) < lengths[:, None] - 1
    tokens[is_before & (tokens == eos)] = 3
    assert legacy or np.max(tokens) > eos
    exported = native_model(parts, facts=EncoderFacts(eos=None if legacy else eos)).config
    assert exported["text_config"]["eos_token_id"] == (2 if legacy else eos)
    theirs.text_model.eos_token_id = exported["text_config"]["eos_token_id"]
    with torch.no_grad():
        expected = theirs.eval().get_text_features(torch.from_numpy(tokens).long())
    found = np.asarray(model.encode_text(jnp.asarray(tokens), jnp.asarray(lengths)))
    expected = torch.nn.functional.normalize(getattr(expected, "pooler_output", expected), dim=-1)
    assert_equal(found, expected)
