"""Foreign checkpoints of every family with one change to one of their JSON files, by seed.

The oracle is transformers: an accepted import must be the model that transformers' config classes
describe. For open_clip, the oracle is the defaults of open_clip's classes.
"""

import copy
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mm1_jax.interop.families import Changes, complete_config, make_parts, make_table
from mm1_jax.interop.tensor_files import DTYPES, TensorSpec, TensorWriter
from mm1_jax.layers.rotary import StretchedRotary

OPEN_CLIP = json.loads((Path(__file__).parent / "open_clip_defaults.json").read_text())
TEXT = {
    "vocab_size": 302,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.02,
    "use_cache": True,
    "dtype": "float32",
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_channels": 3,
    "patch_size": 4,
    "image_size": 16,
    "attention_dropout": 0.0,
}
PAIR_TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 12,
}
STRETCHED = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LENGTH = "original_max_position_embeddings"
VISION_CFG = {"image_size": 16, "layers": 2, "width": 32, "head_width": 8, "patch_size": 4}
TEXT_CFG = {"context_length": 12, "vocab_size": 40, "width": 16, "heads": 4, "layers": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**TEXT, "attention_bias": False, "mlp_bias": False, "rope_theta": 10_000.0},
    "llama 3.1": {
        **TEXT,
        "model_type": "llama",
        "rope_theta": 5e5,
        "rope_scaling": {
            **STRETCHED,
            "rope_type": "llama3",
            "original_max_position_embeddings": 32,
        },
    },
    "mistral": {**TEXT, "sliding_window": 4096, "rope_parameters": {"rope_theta": 1e6}},
    "qwen2": {**TEXT, "use_sliding_window": False, "max_window_layers": 2, "rope_theta": 1e6},
    "qwen3": {**TEXT, "attention_bias": False, "layer_types": ["full_attention"] * 2},
    "mixtral": {**TEXT, "num_local_experts": 4, "num_experts_per_tok": 2, "rope_theta": 1e6},
    "clip": {
        "vision_config": {**TOWER, "hidden_act": "gelu"},
        "text_config": {**PAIR_TEXT, "layer_norm_eps": 1e-5},
        "projection_dim": 16,
    },
    "clip_vision_model": {**TOWER, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "siglip": {
        "vision_config": {**TOWER, "layer_norm_eps": 1e-6},
        "text_config": {**PAIR_TEXT, "projection_size": 32, "pad_token_id": 1},
    },
    "siglip_vision_model": {**TOWER, "hidden_act": "gelu_pytorch_tanh"},
    "llava": {
        "vision_config": {**TOWER, "model_type": "clip_vision_model"},
        "text_config": {**TEXT, "model_type": "mistral"},
        "image_token_index": 301,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    },
    "open_clip": {
        "model_cfg": {"embed_dim": 16, "vision_cfg": VISION_CFG, "text_cfg": TEXT_CFG},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"},
    },
    "aimv2_vision_model": {**TOWER, "hidden_act": "silu", "qkv_bias": False, "mlp_bias": True},
    "aim": {"img_size": 28, "patch_size": 14, "embed_dim": 256, "num_blocks": 2, "num_heads": 2},
}
DECODERS = ("llama", "llama 3.1", "mistral", "qwen2", "qwen3", "mixtral")
# Values that replace a field's; some are names of choices, so that some mutants are valid models.
VALUES = (
    *(None, True, False, 0, -1, 3, 0.5, 1e-3, 10**12, 10**400, 1e300, float("nan"), float("inf")),
    *("", "4", "gelu", "quick_gelu", "tanh", "llama3", "yarn", "full_attention", "bfloat16"),
    *([], [1], ["float32"], [16, 16], [16, 8], {}, {"eps": 1e-6}, {"rope_type": "linear"}),
)
UNKNOWN = ("logit_softcapping", "attention_multiplier", "use_parallel_residual", "qk_layernorm")


class Mutant(NamedTuple):
    """A checkpoint with one changed file, which may be invalid.

    Attributes:
        files: Maps file names to contents.
        what: The kind of change.
        file: The changed file.
        field: The changed field; None if the change is to the whole file.
    """

    family: str
    files: dict[str, bytes]
    what: str
    file: str
    field: str | None


def mutant(seed: int, tokenizer: Mapping[str, Any]) -> Mutant:
    """Makes the mutant of a seed; consecutive seeds cycle through the families.

    Args:
        tokenizer: Contents of the JSON files of a tokenizer of 302 tokens, by name.
    """
    rng = random.Random(seed)
    family = list(FAMILIES)[seed % len(FAMILIES)]
    name = "open_clip_config.json" if family == "open_clip" else "config.json"
    config = copy.deepcopy(FAMILIES[family])
    if family not in ("open_clip", "aim"):
        config.setdefault("model_type", family)
    files: dict[str, Any] = {name: config}
    if family in DECODERS:
        files |= copy.deepcopy(dict(tokenizer))
    # Most changes are to the config, which determines the model.
    file = name if rng.random() < 0.75 else rng.choice(list(files))
    change = rng.choice([_whole_file, *[_field] * 5])
    encoded = {each: json.dumps(content).encode() for each, content in files.items()}
    encoded[file], what, field = change(rng, files[file])
    return Mutant(family, encoded, what, file, field)


def _whole_file(rng: random.Random, content: Any) -> tuple[bytes, str, None]:
    data = json.dumps(content).encode()
    name, changed = rng.choice(
        [
            ("byte order mark", b"\xef\xbb\xbf" + data),
            ("UTF-16", data.decode().encode("utf-16")),
            ("truncated", data[: rng.randrange(len(data))]),
            ("nested", b"[" * 100_000 + b"]" * 100_000),
            ("nested below a field", b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
            ("a list", b"[" + data + b"]"),
            ("null", b"null"),
            ("not UTF-8", b"\xff\xfe\x00" + data),
            ("empty", b""),
        ]
    )
    return changed, name, None


def _field(rng: random.Random, content: Any) -> tuple[bytes, str, str]:
    content = copy.deepcopy(content)
    parent, key, name = rng.choice(list(_places(content)))
    kind = rng.choice(["drop", "value", "value", "value", "number", "unknown", "rename", "twice"])
    if kind == "drop":
        del parent[key]
    elif kind == "number" and isinstance(parent[key], int | float):
        parent[key] = rng.choice(
            [parent[key] + 1, -parent[key], float(parent[key]), 2 * parent[key]]
        )
    elif kind == "unknown" and isinstance(parent, dict):
        name = rng.choice(UNKNOWN)
        parent[name] = rng.choice(VALUES)
    elif kind == "rename" and isinstance(parent, dict):
        parent[rng.choice([f"{key}_", f"num_{key}", str(key).upper()])] = parent.pop(key)
    elif kind == "twice" and isinstance(parent, dict):
        text, again = json.dumps(parent), json.dumps({key: rng.choice(VALUES)})
        whole = json.dumps(content)
        return whole.replace(text, f"{again[:-1]}, {text[1:]}").encode(), kind, name
    else:
        kind = "value"
        parent[key] = rng.choice(VALUES)
    return json.dumps(content).encode(), kind, name


def _places(content: Any, name: str = ""):
    """Yields (container, key, field) within a JSON value; only the ends of long containers.

    Elements of a list have the field of the list.
    """
    if isinstance(content, dict):
        keys = list(content)
    elif isinstance(content, list):
        keys = [0, len(content) - 1] if content else []
    else:
        return
    for key in keys if len(keys) < 40 else [*keys[:3], *keys[-3:]]:
        field = key if isinstance(key, str) else name
        yield content, key, field
        yield from _places(content[key], field)


def write_tensors(family: str, folder: Path, seed: int = 0) -> None:
    """Writes the tensors of the family's checkpoint before the mutation."""
    specs = {}
    if family == "aim":
        specs["preprocessor.patchifier.proj.weight"] = TensorSpec((256, 3, 14, 14), DTYPES["F32"])
        for i in range(2):
            specs[f"trunk.blocks.{i}.norm_1.weight"] = TensorSpec((256,), DTYPES["F32"])
    config = {"model_type": family, **FAMILIES[family]}
    if family in ("open_clip", "aim"):
        del config["model_type"]
    config = complete_config(config, specs)
    roots = {
        "llava": ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"),
        "open_clip": ("visual.conv1.weight", "token_embedding.weight"),
        "aimv2_vision_model": ("embeddings.patch_embed.weight",),
    }.get(family, ("model.embed_tokens.weight", "lm_head.weight"))
    names = [
        *roots,
        "vision_tower.vision_model.embeddings.patch_embedding.weight"
        if family == "llava"
        else "vision_model.embeddings.patch_embedding.weight",
        "multi_modal_projector.linear_1.weight",
    ]
    table = make_table(make_parts(config, Changes()), config, names)
    specs = {entry.name: TensorSpec(entry.shape, DTYPES["F32"]) for entry in table.entries}
    rng = np.random.default_rng(seed)
    TensorWriter(folder, specs, 10**9).write(
        lambda name: rng.standard_normal(specs[name].shape, np.float32)
    )


def facts_of_parts(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Collects the properties that a config determines from the parts that we read."""
    result = {}
    if (cfg := parts.get("decoder")) is not None:
        attention = cfg.stack.layer.attention
        rotary = attention.rotary
        stretch = None
        if isinstance(rotary, StretchedRotary.Config):
            stretch = tuple(getattr(rotary, name) for name in (*STRETCHED, _LENGTH))
        result["decoder"] = {
            "sizes": (cfg.vocab_size, cfg.model_dim, cfg.hidden_dim, cfg.num_layers),
            "heads": (cfg.num_heads, cfg.num_kv_heads, cfg.head_dim),
            "eps": cfg.norm.eps,
            "tied": cfg.tied_embeddings,
            "theta": rotary.theta,
            "stretch": stretch,
            "bias": attention.bias,
            "qk_norm": attention.qk_norm is not None,
            "experts": cfg.moe and (cfg.moe.num_experts, cfg.moe.experts_per_token),
        }
    if (cfg := parts.get("vision_encoder")) is not None:
        layer = cfg.stack.layer
        result["vision_encoder"] = {
            "sizes": (cfg.model_dim, cfg.hidden_dim, cfg.num_layers, cfg.num_heads),
            "pixels": (cfg.image_size, cfg.patch_size),
            "activation": layer.feed_forward.activation.value,
            "eps": layer.norm.eps,
            "has_class_token": cfg.class_token is not None,
            "pre_norm": cfg.pre_norm is not None,
        }
    if (cfg := parts.get("text_encoder")) is not None:
        layer = cfg.stack.layer
        result["text_encoder"] = {
            "sizes": (cfg.model_dim, cfg.hidden_dim, cfg.num_layers, cfg.num_heads),
            "texts": (cfg.vocab_size, cfg.max_length, cfg.output_dim),
            "activation": layer.feed_forward.activation.value,
            "eps": (layer.norm.eps, cfg.final_norm.eps),
            "pattern": layer.attention.pattern.value,
            "pooling": cfg.pooling.value,
            "bias": cfg.projection.bias,
        }
    if (cfg := parts.get("connector")) is not None:
        result["connector"] = (cfg.activation.value, cfg.up.bias)
    return result


class Refused(Exception):
    """Raised where the oracle rejects a config."""


def facts_of_oracle(family: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Collects the same properties as the family's own library reads them.

    Raises:
        Refused: The library rejects the config.
    """
    if family == "open_clip":
        return _open_clip(config)
    config = _with_floats(config)
    try:
        hf: Any = CONFIG_MAPPING[config.pop("model_type")].from_dict(config)
        if hf.model_type == "llava":
            tower = _tower(hf.vision_config)
            layers, layer = tower["sizes"][2], hf.vision_feature_layer
            layers = layer if layer >= 0 else layers + 1 + layer
            tower["sizes"] = (*tower["sizes"][:2], layers, tower["sizes"][3])
            decoder = _decoder(hf.text_config) | {"tied": hf.tie_word_embeddings}
            connector = (_ACTIVATIONS[hf.projector_hidden_act], hf.multimodal_projector_bias)
            return {"decoder": decoder, "vision_encoder": tower, "connector": connector}
        if hasattr(hf, "vision_config"):
            return {"vision_encoder": _tower(hf.vision_config), "text_encoder": _text(hf)}
        if hf.model_type.endswith("vision_model"):
            return {"vision_encoder": _tower(hf)}
        return {"decoder": _decoder(hf)}
    except Exception as error:  # Every check of transformers raises another class.
        raise Refused(str(error)) from error


def _with_floats(value: Any, name: str = "") -> Any:
    """Copies a config with every eps as a float, which only transformers 5 requires."""
    if isinstance(value, dict):
        return {key: _with_floats(each, key) for key, each in value.items()}
    is_whole = isinstance(value, int) and not isinstance(value, bool) and value < 10**300
    return float(value) if name.endswith("_eps") and is_whole else copy.deepcopy(value)


_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_ACTIVATIONS |= {"silu": "silu"}


def _text(pair: Any) -> dict[str, Any]:
    """Collects the properties of a text tower; those of classes are in their code."""
    hf, is_clip = pair.text_config, pair.model_type == "clip"
    output_dim = pair.projection_dim if is_clip else hf.projection_size
    assert is_clip or output_dim == pair.vision_config.hidden_size
    return {
        "sizes": (
            *(hf.hidden_size, hf.intermediate_size, hf.num_hidden_layers),
            hf.num_attention_heads,
        ),
        "texts": (hf.vocab_size, hf.max_position_embeddings, output_dim),
        "activation": _ACTIVATIONS[hf.hidden_act],
        "eps": (hf.layer_norm_eps, hf.layer_norm_eps),
        "pattern": "causal" if is_clip else "bidirectional",
        "pooling": "eos" if is_clip else "last",
        "bias": not is_clip,
    }


def _decoder(hf: Any) -> dict[str, Any]:
    assert hf.hidden_act in ("silu", "swish")
    rope = hf.rope_parameters
    assert rope["rope_type"] in ("default", "llama3") and not hf.to_dict().get("mlp_bias")
    stretch = None
    if rope["rope_type"] == "llama3":
        stretch = tuple(rope[name] for name in (*STRETCHED, _LENGTH))
    head_dim = getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads
    has_experts = hf.model_type == "mixtral"
    return {
        "sizes": (hf.vocab_size, hf.hidden_size, hf.intermediate_size, hf.num_hidden_layers),
        "heads": (hf.num_attention_heads, hf.num_key_value_heads, head_dim),
        "eps": hf.rms_norm_eps,
        "tied": hf.tie_word_embeddings,
        "theta": rope["rope_theta"],
        "stretch": stretch,
        "bias": hf.model_type == "qwen2" or getattr(hf, "attention_bias", False),
        "qk_norm": hf.model_type == "qwen3",
        "experts": (hf.num_local_experts, hf.num_experts_per_tok) if has_experts else None,
    }


def _tower(hf: Any) -> dict[str, Any]:
    def side(size):
        if isinstance(size, int):
            return size
        assert len(size) == 2 and size[0] == size[1]
        return size[0]

    is_clip, is_siglip = (hf.model_type == f"{x}_vision_model" for x in ("clip", "siglip"))
    image, patch = side(hf.image_size), side(hf.patch_size)
    assert hf.num_channels == 3
    return {
        "sizes": (
            *(hf.hidden_size, hf.intermediate_size, hf.num_hidden_layers),
            hf.num_attention_heads,
        ),
        "pixels": (image // patch * patch if is_siglip else image, patch),
        "activation": _ACTIVATIONS[hf.hidden_act],
        "eps": hf.layer_norm_eps if is_clip or is_siglip else hf.rms_norm_eps,
        "has_class_token": is_clip,
        "pre_norm": is_clip,
    }


def _open_clip_tower(cfg: Mapping[str, Any], heads: int, quick_gelu: bool) -> dict[str, Any]:
    activation = "quick_gelu" if quick_gelu else "gelu"
    if (cfg["act_kwargs"] or {}).get("approximate") == "tanh":
        activation += "_tanh"
    return {
        "sizes": (cfg["width"], int(cfg["width"] * cfg["mlp_ratio"]), cfg["layers"], heads),
        "activation": activation,
        "eps": (cfg["norm_kwargs"] or {}).get("eps", 1e-5),
    }


def _open_clip(config: Mapping[str, Any]) -> dict[str, Any]:
    """Applies the defaults of open_clip's classes as its model builder does."""
    try:
        model = config["model_cfg"]
        cfg = {**OPEN_CLIP["CLIPVisionCfg"], **(model["vision_cfg"] or {})}
        # open_clip raises on unknown fields; here they may be there if they are off.
        known = OPEN_CLIP["CLIPVisionCfg"].keys()
        assert not any(value for name, value in cfg.items() if name not in known)
        known = {*OPEN_CLIP["CLIP"], *OPEN_CLIP["CustomTextCLIP"], *OPEN_CLIP["CoCa"]}
        assert not any(v for k, v in model.items() if k not in {*known, "custom_text"})
        text = {**OPEN_CLIP["CLIPTextCfg"], **(model["text_cfg"] or {})}
        known = OPEN_CLIP["CLIPTextCfg"].keys()
        assert not any(value for name, value in text.items() if name not in known)
        quick_gelu = model.get("quick_gelu", False)
        side = cfg["image_size"]
        heads = cfg["width"] // cfg["head_width"]
        tower = {
            **_open_clip_tower(cfg, heads, quick_gelu),
            "pixels": (side[0] if isinstance(side, list) else side, cfg["patch_size"]),
            "has_class_token": True,
            "pre_norm": not cfg["no_ln_pre"],
        }
        words = _open_clip_tower(text, text["heads"], quick_gelu)
        words |= {
            "texts": (text["vocab_size"], text["context_length"], model["embed_dim"]),
            "eps": (words["eps"], words["eps"]),
            "pattern": "bidirectional" if text["no_causal_mask"] else "causal",
            "pooling": {"argmax": "eos"}.get(text["pool_type"], text["pool_type"]),
            "bias": text["proj_bias"],
        }
        return {"vision_encoder": tower, "text_encoder": words}
    except (AssertionError, KeyError, TypeError, AttributeError) as error:
        raise Refused(str(error)) from error


transformers.logging.set_verbosity_error()
