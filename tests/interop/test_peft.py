"""Adapters go to PEFT and come back; torch computes with them what we compute."""

import json
import re

import jax
import numpy as np
import peft
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

from experiments import sizes, vision_encoders
from mm1_jax.checkpoints.weights_folder import StoredParams, WeightsWriter, describe
from mm1_jax.interop.adapters import BaseParams, MergedParams, adapted_model
from mm1_jax.interop.compare import (
    compare,
    model_logits,
    one_document_rows,
    pixel_values,
    random_images,
    random_tokens,
    with_params,
)
from mm1_jax.interop.exporter import export_mm1, export_native
from mm1_jax.interop.importer import ParamsOf
from mm1_jax.interop.mm1 import model_parts
from mm1_jax.interop.native import native_llava, native_model
from mm1_jax.interop.peft import CONFIG, TENSORS, export_adapters
from mm1_jax.interop.peft_import import import_adapters
from mm1_jax.interop.tensor_files import TensorFile
from mm1_jax.layers.feed_forward import Activation
from mm1_jax.layers.lora import Adapter, LoRA
from mm1_jax.models.connectors.mlp import MLP

IMAGE_TOKEN = 4


def adapter(rank, alpha):
    return Adapter.default_config().set(rank=rank, alpha=alpha)


def tiny():
    cfg = sizes.tiny().set(image_token=IMAGE_TOKEN, dtype="float32")
    cfg.decoder.set(num_layers=2, vocab_size=64)
    return cfg


def both_parts():
    """Adapters of two ranks in decoder and encoder, a trained connector and a trained norm."""
    cfg = tiny()
    cfg.vision_encoder.num_layers = 2
    return cfg.set(
        lora=LoRA.default_config().set(
            adapters={
                "vision_encoder/.*/(query|value)": adapter(2, 8.0),
                "decoder/.*/feed_forward": adapter(3, 6.0),
                "decoder/stack": adapter(4, 6.0),
            },
            trained=("connector", "decoder/norm"),
        )
    )


def text_only():
    cfg = tiny()
    lora = LoRA.default_config().set(
        adapters={"decoder/.*/(query|value|down)": adapter(4, 5.0)}, rank_stabilized=True
    )
    return cfg.set(vision_encoder=None, connector=None, lora=lora)


def llava():
    cfg = tiny()
    cfg.vision_encoder = vision_encoders.vit_l14(28, Activation.QUICK_GELU).set(
        model_dim=32, num_layers=2, num_heads=2, hidden_dim=48, final_norm=None
    )
    cfg.connector = MLP.default_config().set(num_image_tokens=4)
    lora = LoRA.default_config().set(
        adapters={"(decoder|vision_encoder)/stack": adapter(2, 4.0)}, trained=("connector",)
    )
    return cfg.set(lora=lora)


def draw(cfg, folder):
    """Stores random parameters; zero biases and zero updates would hide mistakes."""
    module = nnx.eval_shape(lambda: cfg.instantiate(rngs=nnx.Rngs(params=0)))
    shapes = {
        "/".join(str(key.key) for key in keys): leaf.shape
        for keys, leaf in jax.tree_util.tree_leaves_with_path(
            nnx.to_pure_dict(nnx.state(module, nnx.Param))
        )
    }
    generator = np.random.default_rng(0)
    folder.mkdir()
    writer = WeightsWriter(folder, shapes, dict.fromkeys(shapes, np.dtype(np.float32)), {})
    for path, shape in shapes.items():
        value = generator.standard_normal(shape, np.float32)
        if path.endswith("scale"):
            value = 1 + 0.2 * value
        elif not path.endswith(("embedding/weight", "positions", "token")):
            value *= 0.3 / np.sqrt(max(shape[-1], 8))
            value *= 2 if "/lora/" in path else 1
        writer.write(path, (), value)
    describe(folder, {"parts": {}})
    return folder


def natively(cfg):
    parts = model_parts(cfg)
    if cfg.vision_encoder is None:
        return parts, native_model(parts)
    return parts, native_llava(parts, IMAGE_TOKEN) if isinstance(
        cfg.connector, MLP.Config
    ) else None


def our_logits(cfg, params, tokens, images):
    return model_logits(with_params(cfg, params), one_document_rows(tokens, images))


def their_logits(model, cfg, tokens, images):
    inputs = {}
    if cfg.vision_encoder is not None:
        encoder = cfg.vision_encoder
        pixels = pixel_values(images, encoder.pixel_mean, encoder.pixel_std)
        inputs["pixel_values"] = torch.from_numpy(pixels)
    with torch.no_grad():
        return model.eval()(input_ids=torch.from_numpy(tokens), **inputs).logits.numpy()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("make", [both_parts, text_only, llava])
def test_torch_computes_with_exported_adapters_what_we_compute(make, tmp_path):
    cfg = make()
    trained = draw(cfg, tmp_path / "trained")
    parts, native = natively(cfg)
    model = adapted_model(cfg)
    exported = export_adapters(
        trained, None, model, parts, tmp_path / "adapters", native=native, image_token=IMAGE_TOKEN
    )
    assert exported.comparison.is_good
    for name, params in (
        ("base", BaseParams(trained)),
        ("merged", MergedParams(trained, None, model.layers)),
    ):
        if native is None:
            export_mm1(
                params, parts, tmp_path / name, image_token=IMAGE_TOKEN, skip_comparison=True
            )
        else:
            export_native(params, native, parts, tmp_path / name, skip_comparison=True)

    def load(name):
        kind = AutoModelForCausalLM
        if native is not None and len(parts) > 1:
            kind = LlavaForConditionalGeneration
        options = {"trust_remote_code": True} if native is None else {}
        return kind.from_pretrained(tmp_path / name, dtype=torch.float32, **options)

    tokens, images = random_tokens(cfg.decoder.vocab_size), np.zeros((2, 1, 1, 3), np.uint8)
    tokens[tokens == IMAGE_TOKEN] = 0
    if cfg.vision_encoder is not None:
        images = random_images(cfg.vision_encoder.image_size)
        tokens[:, 2 : 2 + cfg.connector.num_image_tokens] = IMAGE_TOKEN
    # Adapters are applied here, and not merged.
    ours = our_logits(cfg, ParamsOf(StoredParams(trained)), tokens, images)
    base = their_logits(load("base"), cfg, tokens, images)
    # Missing keys are warnings, which fail this test.
    adapted = peft.PeftModel.from_pretrained(load("base"), tmp_path / "adapters")
    assert compare("with adapters", ours, their_logits(adapted, cfg, tokens, images)).is_good
    assert compare("merged", ours, their_logits(load("merged"), cfg, tokens, images)).is_good
    assert np.abs(ours - base).max() > 1e-3 * np.abs(base).max()


@pytest.mark.parametrize("make", [both_parts, text_only, llava])
def test_adapters_read_back_bit_for_bit(make, tmp_path):
    cfg = make()
    trained = draw(cfg, tmp_path / "trained")
    parts, native = natively(cfg)
    model = adapted_model(cfg)
    options = {"native": native, "image_token": IMAGE_TOKEN, "skip_comparison": True}
    export_adapters(trained, None, model, parts, tmp_path / "adapters", **options)
    base = StoredParams(trained)
    found = import_adapters(tmp_path / "adapters", tmp_path / "weights", base=base, parts=parts)
    stored, weights = StoredParams(trained), StoredParams(tmp_path / "weights")
    lora = {path for path in stored.shapes if "/lora/" in path}
    assert set(weights.shapes) == lora | model.trained
    for path in weights.shapes:
        np.testing.assert_array_equal(weights.read(path), stored.read(path), path)
    assert found.trained == list(cfg.lora.trained)
    scale = np.sqrt if cfg.lora.rank_stabilized else float
    for path, layer in model.layers.items():
        rank, alpha = found.layers[path]
        assert rank == layer.rank and alpha / scale(rank) == pytest.approx(layer.scale)


def test_the_config_of_adapters_is_as_people_write_it(tmp_path):
    configs = {}
    for make in (both_parts, text_only):
        cfg = make()
        trained = draw(cfg, tmp_path / make.__name__)
        parts, native = natively(cfg)
        output = tmp_path / f"{make.__name__}_adapters"
        options = {"native": native, "image_token": IMAGE_TOKEN, "skip_comparison": True}
        export_adapters(trained, None, adapted_model(cfg), parts, output, base="base", **options)
        configs[make.__name__] = json.loads((output / CONFIG).read_text())
    text, both = configs["text_only"], configs["both_parts"]
    assert text["target_modules"] == ["q_proj", "v_proj", "down_proj"]
    assert (text["r"], text["lora_alpha"], text["use_rslora"]) == (4, 5, True)
    assert (text["task_type"], text["base_model_name_or_path"]) == ("CAUSAL_LM", "base")
    assert text["rank_pattern"] == text["alpha_pattern"] == {} and text["modules_to_save"] is None
    assert both["modules_to_save"] == ["connector", "decoder.norm"] and both["task_type"] is None
    assert re.fullmatch(both["target_modules"], "vision_encoder.layers.1.attention.query")
    assert not re.fullmatch(both["target_modules"], "vision_encoder.layers.1.attention.key")
    assert both["rank_pattern"][r"vision_encoder\.layers\.\d+\.attention\.query"] == 2
    names = TensorFile(tmp_path / "both_parts_adapters" / TENSORS).specs
    assert "base_model.model.decoder.layers.1.attention.output.lora_B.weight" in names


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("peft_type", "IA3", "peft_type='IA3': expected 'LORA'"),
        ("use_dora", True, "use_dora=True is not supported"),
        ("bias", "all", "bias='all': expected 'none'"),
    ],
)
def test_other_methods_of_peft_are_refused(tmp_path, field, value, message):
    cfg = text_only()
    trained = draw(cfg, tmp_path / "trained")
    parts, native = natively(cfg)
    options = {"native": native, "image_token": IMAGE_TOKEN, "skip_comparison": True}
    export_adapters(trained, None, adapted_model(cfg), parts, tmp_path / "adapters", **options)
    path = tmp_path / "adapters" / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    base = StoredParams(trained)
    with pytest.raises(ValueError, match=re.escape(message)):
        import_adapters(tmp_path / "adapters", tmp_path / "weights", base=base, parts=parts)


def test_adapters_of_another_base_are_refused(tmp_path):
    cfg = text_only()
    trained = draw(cfg, tmp_path / "trained")
    parts, native = natively(cfg)
    options = {"native": native, "image_token": IMAGE_TOKEN, "skip_comparison": True}
    export_adapters(trained, None, adapted_model(cfg), parts, tmp_path / "adapters", **options)
    shallow = {"decoder": parts["decoder"].clone(num_layers=1)}
    base = StoredParams(trained)
    with pytest.raises(ValueError, match="--base has no model.layers.1.mlp.down_proj.weight"):
        import_adapters(tmp_path / "adapters", tmp_path / "weights", base=base, parts=shallow)
    tensors = load_file(tmp_path / "adapters" / TENSORS)
    first = {name: x for name, x in tensors.items() if ".layers.1." not in name}
    save_file(first, tmp_path / "adapters" / TENSORS)
    with pytest.raises(ValueError, match="has 1 of the 2 layers of decoder/stack/layer/"):
        import_adapters(tmp_path / "adapters", tmp_path / "weights", base=base, parts=parts)
