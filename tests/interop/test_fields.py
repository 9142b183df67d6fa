"""Defaults of config classes equal those of their libraries; unsupported fields are named."""

import dataclasses
import json
from pathlib import Path

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mm1_jax.interop import clip, families, llava, vision
from mm1_jax.interop.families import Changes, make_parts
from mm1_jax.interop.fields import _FIXED, Fields, ForeignClass
from mm1_jax.layers.feed_forward import Activation

OPEN_CLIP = json.loads((Path(__file__).parent / "open_clip_defaults.json").read_text())
# Names in configs that are not fields of a config class: older names, and names that models read
# anyway.
NO_FIELDS = {
    *("rope_theta", "rope_scaling", "partial_rotary_factor", "head_dim"),
    *("vision_config_dict", "text_config_dict"),
}


def default_of(field):
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


CLASSES = {
    **{name: families._CLASSES[name] for name in families._CLASS_NAMES},
    "clip_text_model": clip.CLIP_TEXT,
    "siglip_text_model": clip.SIGLIP_TEXT,
}


@pytest.mark.parametrize("model_type", CLASSES)
def test_the_defaults_of_a_class_equal_those_of_transformers(model_type):
    ours, theirs = CLASSES[model_type], CONFIG_MAPPING[model_type]
    assert ours.name == theirs.__name__
    defaults = {field.name: default_of(field) for field in dataclasses.fields(theirs)}
    for name, default in defaults.items():
        if not ours.is_neutral(name):
            assert {**_FIXED, **ours.defaults}[name] == default, name
    aliases = set(getattr(theirs, "attribute_map", {}))
    assert ours.defaults.keys() - defaults.keys() <= NO_FIELDS | aliases
    if "rope_theta" in ours.defaults:
        assert ours.defaults["rope_theta"] == theirs.default_theta
    assert not set(ours.neutral) & set(ours.defaults)


def test_a_llava_without_sections_has_transformers_default_parts():
    theirs = CONFIG_MAPPING["llava"]()
    encoder, _, decoder = make_parts({"model_type": "llava"}, Changes()).values()
    tower, text = theirs.vision_config, theirs.text_config
    assert (tower.model_type, text.model_type) == ("clip_vision_model", "llama")
    assert encoder.model_dim == tower.hidden_size and encoder.hidden_dim == tower.intermediate_size
    # LLaVA reads the hidden states before the last layer.
    assert encoder.num_layers == tower.num_hidden_layers - 1
    assert (encoder.image_size, encoder.patch_size) == (tower.image_size, tower.patch_size)
    assert decoder.hidden_dim == text.intermediate_size
    assert llava.image_token(families.fields_of({"model_type": "llava"})) == theirs.image_token_id


@pytest.mark.parametrize(
    ("ours", "names"),
    [
        (vision.OPEN_CLIP_VISION, ["CLIPVisionCfg"]),
        (clip.OPEN_CLIP_TEXT, ["CLIPTextCfg"]),
        (vision.OPEN_CLIP_MODEL, ["CLIP", "CustomTextCLIP", "CoCa"]),
        (vision.OPEN_CLIP_PREPROCESS, ["PreprocessCfg"]),
    ],
)
def test_the_defaults_of_open_clip_equal_its_own(ours, names):
    theirs = {k: v for name in names for k, v in OPEN_CLIP[name].items()}
    for name, default in theirs.items():
        if isinstance(default, dict):
            default = tuple(OPEN_CLIP["constants"].get(default["source"], ()))
        if not ours.is_neutral(name):
            assert ours.defaults[name] == default, name
    assert ours.defaults.keys() <= theirs.keys()


LLAMA = {"model_type": "llama"}
CLIP = {"model_type": "clip_vision_model"}
AIMV2 = {"model_type": "aimv2_vision_model"}


def pair(model_type, text, **tower):
    return {"model_type": model_type, "vision_config": tower, "text_config": text}


def open_clip(model=(), text=(), **vision_cfg):
    sections = {"vision_cfg": vision_cfg, "text_cfg": dict(text)}
    return {"model_type": "open_clip", "model_cfg": {"embed_dim": 8, **sections, **dict(model)}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**LLAMA, "attention_scale": 2}, "attention_scale=2: LlamaConfig has no such field"),
        ({**LLAMA, "mlp_bias": True}, "mlp_bias=true: only false, the default, is supported"),
        ({**LLAMA, "quantization_config": {"bits": 4}}, "quantization_config="),
        ({**LLAMA, "hidden_act": "gelu"}, 'hidden_act="gelu": expected one of silu'),
        ({**LLAMA, "hidden_size": 33}, "hidden_size=33: expected a multiple of num_attention"),
        ({**LLAMA, "num_attention_heads": [4]}, r"num_attention_heads=\[4\]: expected a whole"),
        ({**LLAMA, "num_hidden_layers": 10**9}, "num_hidden_layers=1000000000: expected"),
        ({**LLAMA, "rms_norm_eps": float("nan")}, "rms_norm_eps=NaN: expected a number above 0"),
        ({**LLAMA, "dtype": ["float32"]}, r'dtype=\["float32"\]: expected one of'),
        (
            {**LLAMA, "rope_scaling": {"type": "linear", "factor": 2}},
            'type="linear": expected default',
        ),
        ({**LLAMA, "rope_scaling": [8]}, "rope_scaling is not a JSON object"),
        ({**LLAMA, "rope_theta": 5, "rope_parameters": {"rope_theta": 6}}, "rope_theta=5: rope_"),
        ({"model_type": "mistral", "attention_bias": True}, "MistralConfig has no such field"),
        ({"model_type": "mixtral", "num_experts_per_tok": 9}, "num_experts_per_tok=9: expected"),
        ({"model_type": "qwen2", "layer_types": ["linear"]}, "layer_types="),
        ({**CLIP, "num_channels": 1}, "num_channels=1: only 3, the default, is supported"),
        ({**CLIP, "image_size": [224, 336]}, r"image_size=\[224, 336\]: only squares"),
        ({**CLIP, "image_size": 225}, "image_size=225: expected a multiple of patch_size=32"),
        ({"model_type": "llava", "vision_feature_layer": [-2]}, r"vision_feature_layer=\[-2\]"),
        ({"model_type": "llava", "vision_feature_layer": 40}, "vision_feature_layer=40"),
        ({"model_type": "llava", "projector_hidden_act": "relu"}, 'projector_hidden_act="relu"'),
        ({"model_type": "llava", "text_config": 3}, "text_config.model_type=None"),
        (
            {"model_type": "llava", "text_config": {"rope_type": "x"}},
            'text_config.rope_type="x": LlamaConfig has no such field',
        ),
        (open_clip(ls_init_value=1e-4), "ls_init_value=0.0001: only null"),
        (open_clip(attentional_pool=True), "attentional_pool=true: only false"),
        (open_clip(pool_type="avg"), 'pool_type="avg"'),
        (open_clip(timm_model_name="vit_base"), "the tower is timm's"),
        (open_clip(layers=[3, 4, 6, 3], patch_size=None), "a list is a ResNet"),
        (open_clip(act_kwargs={"approximate": "yes"}), 'act_kwargs.approximate="yes"'),
        (open_clip(act_kwargs={"inplace": True}), "act_kwargs.inplace=true: GELU has no such"),
        (open_clip({"quick_gelu": True}, act_kwargs={"approximate": "tanh"}), "QuickGELU has no"),
        (open_clip(norm_kwargs={"elementwise_affine": False}), "elementwise_affine=false: only"),
        (open_clip(patch_size=15), "image_size=224 .* expected a multiple of patch_size=15"),
        (open_clip(scale_fc=True), "vision_cfg.scale_fc=true: only false"),
        (open_clip(text={"pool_type": "first"}), 'text_cfg.pool_type="first": expected one of'),
        (open_clip(text={"proj_type": "none"}), 'text_cfg.proj_type="none": expected one of lin'),
        (open_clip(text={"embed_cls": True}), "text_cfg.embed_cls=true: only false"),
        (open_clip(text={"heads": 7}), "text_cfg.width=512 .*expected a multiple of heads=7"),
        (open_clip({"multimodal_cfg": {}}), "multimodal_cfg={}: a CoCa has a decoder"),
        (open_clip({"embed_dim": None}), "embed_dim=null: expected a whole number"),
        (pair("clip", {"hidden_size": 30}), "text_config.hidden_size=30: expected a multiple"),
        (pair("clip", {"hidden_act": "relu"}), 'text_config.hidden_act="relu": expected one of'),
        (pair("siglip", {"projection_size": 9}), "projection_size=9: expected the hidden_size 768"),
        (pair("siglip", {}, vision_use_head=False), "vision_use_head=false: features of images"),
        ({**AIMV2, "hidden_act": "gelu"}, 'hidden_act="gelu": expected one of silu'),
        ({**AIMV2, "image_size": 225}, "image_size=225: expected a multiple of patch_size=14"),
    ],
)
def test_an_unsupported_field_is_named_with_its_value(config, message):
    with pytest.raises(ValueError, match=message) as error:
        make_parts(config, Changes())
    file = "open_clip_config.json" if config["model_type"] == "open_clip" else "config.json"
    assert str(error.value).startswith(f"{file}: ")


def test_open_clip_fields_that_affect_the_output_are_read():
    config = open_clip(
        act_kwargs={"approximate": "tanh"},
        norm_kwargs={"eps": 1e-6},
        image_size=[28, 28],
        patch_size=14,
        patch_dropout=0.5,
        no_ln_pre=True,
        pool_type="avg",
        final_ln_after_pool=True,
        pos_embed_type="sin_cos_2d",
    )
    cfg = make_parts(config, Changes())["vision_encoder"]
    assert cfg.stack.layer.feed_forward.activation is Activation.GELU_TANH
    assert (cfg.stack.layer.norm.eps, cfg.image_size, cfg.pre_norm) == (1e-6, 28, None)
    cfg = make_parts(open_clip({"quick_gelu": True}), Changes())["vision_encoder"]
    assert cfg.stack.layer.feed_forward.activation is Activation.QUICK_GELU
    assert cfg.pre_norm.eps == 1e-5 and cfg.image_size == 224


def test_pixel_statistics_come_from_the_processor_beside_an_encoder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CLIP))
    processor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [1, 1, 1], "do_resize": True}
    for name, content in (
        ("preprocessor_config.json", processor),
        ("processor_config.json", {"image_processor": processor}),
    ):
        (tmp_path / name).write_text(json.dumps(content))
        config = families.read_config(tmp_path)
        (cfg,) = make_parts(config, Changes()).values()
        assert (cfg.pixel_mean, cfg.pixel_std) == ((0.5, 0.4, 0.3), (1, 1, 1))
        assert families.source_config(config) == ("config.json", CLIP)
        (tmp_path / name).unlink()
    broken = {**processor, "image_std": [0, 1, 1]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="preprocessor_config.json: image_std=0"):
        make_parts(families.read_config(tmp_path), Changes())


def test_stored_configs_are_read_again_without_strict_checks():
    config = {**LLAMA, "attention_scale": 2}
    assert make_parts(config, Changes(), strict=False)["decoder"].num_layers == 32


def test_omitted_sizes_are_reported():
    config = {"model_type": "llama", "hidden_size": 64, "text": None}
    assert "num_attention_heads=32" in families.left_out(config)
    assert not any("hidden_size" in name for name in families.left_out(config))


def test_an_integer_field_rejects_booleans_and_strings():
    klass = ForeignClass("Class", {"size": 4})
    for value in (True, "4", 4.0, None, {}, -1):
        with pytest.raises(ValueError, match="config.json: section.size="):
            Fields({"size": value}, klass, path="section.").integer("size")
    assert Fields({}, klass).integer("size") == 4
