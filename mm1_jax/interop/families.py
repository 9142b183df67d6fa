"""Reads the config of a foreign checkpoint, and makes the parts and the table that convert it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm1_jax.config import InstantiableConfig
from mm1_jax.interop import clip, clip_tensors, llama, llama_tensors, llava, vision, vision_tensors
from mm1_jax.interop.fields import Fields, essential
from mm1_jax.interop.mapping import Table, prefix_of
from mm1_jax.interop.tensor_files import TensorSpec
from mm1_jax.storage import read_json_object

# Config files of checkpoints, in order of preference.
CONFIGS = ("config.json", "open_clip_config.json")
_AIM_KERNEL = "preprocessor.patchifier.proj.weight"
_AIM_HEAD_DIM = 128  # In all published AIM trunks.
_SIGLIP, _CLIP = ("siglip", "siglip_vision_model"), ("clip", "clip_vision_model")
# Our names: the configs of these two have no `model_type`.
_OPEN_CLIP, _AIM = "open_clip", "aim"
_FAMILIES = (*llama.MODEL_TYPES, *_CLIP, *_SIGLIP, llava.MODEL_TYPE, _OPEN_CLIP, _AIM)
_CLASSES = {
    **llama.CLASSES,
    "clip": vision.CLIP,
    "clip_vision_model": vision.CLIP_VISION,
    "siglip": vision.SIGLIP,
    "siglip_vision_model": vision.SIGLIP_VISION,
    llava.MODEL_TYPE: llava.LLAVA,
    _OPEN_CLIP: vision.OPEN_CLIP,
    _AIM: vision.AIM,
}
# Model type -> beginning of the class names in `architectures`.
_CLASS_NAMES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "mixtral": "Mixtral",
    "clip": "CLIP",
    "clip_vision_model": "CLIPVision",
    "siglip": "Siglip",
    "siglip_vision_model": "SiglipVision",
    llava.MODEL_TYPE: "Llava",
}
# Our field of complete configs for the pixel fields of the processor beside a checkpoint.
_PREPROCESSOR = "mm1_jax_preprocessor"


@dataclass(frozen=True)
class Changes:
    """Changes that a conversion makes besides names and layouts.

    Attributes:
        vocab_size: Rows of the embedding and the output layer, at least as many as in the source;
            new rows are the mean of the others. None keeps the source's size.
        num_experts: Experts per `moe_every`-th layer, each a copy of the dense layer; None keeps
            the decoder dense.
        both_towers: Also converts the text tower, poolings and projections of a CLIP or SigLIP.
    """

    vocab_size: int | None = None
    num_experts: int | None = None
    moe_every: int = 1
    both_towers: bool = False


def read_config(source: Path) -> dict[str, Any]:
    """Returns the config beside the tensors of a checkpoint; empty without one.

    It includes the pixel fields of a processor's config, if there is one beside it.

    Raises:
        ValueError: The config cannot be read.
    """
    folder = source if source.is_dir() else source.parent
    name = next((name for name in CONFIGS if (folder / name).is_file()), None)
    if name is None:
        return {}
    config = read_json_object(folder / name)
    if _PREPROCESSOR in config:
        raise ValueError(f"{folder / name}: {_PREPROCESSOR} is not a field of any config")
    if name == CONFIGS[0] and (pixels := _processor(folder)) is not None:
        config[_PREPROCESSOR] = pixels
    return config


def _processor(folder: Path) -> dict[str, Any] | None:
    """Returns the pixel fields of the processor beside a checkpoint; None without one."""
    for name, section in (("preprocessor_config.json", None), ("processor_config.json", "image")):
        if not (folder / name).is_file():
            continue
        content: Any = read_json_object(folder / name)
        if section is not None:
            content = content.get("image_processor")
        if isinstance(content, dict):
            known = vision.CLIP_PROCESSOR.defaults
            return {"file": name, **{k: v for k, v in content.items() if k in known}}
    return None


def complete_config(config: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    """Returns the config with a `model_type` and all sizes, some of which only tensors tell.

    Raises:
        ValueError: The family is unknown, or the config contradicts itself or the tensors.
    """
    model_type = _model_type(config)
    if model_type in _FAMILIES:
        return {**config, "model_type": model_type}
    if "model_cfg" in config:
        return {**config, "model_type": _OPEN_CLIP}
    if _AIM_KERNEL in specs:
        return _complete_aim(config, specs)
    if prefix_of(specs, "conv1.weight") is not None:
        raise ValueError("an open_clip tower needs its open_clip_config.json beside it")
    raise ValueError(
        f"config.json: model_type={model_type!r}: unknown family. Supported are "
        f"{', '.join(_FAMILIES[:-2])}; open_clip's towers by their open_clip_config.json, and "
        "AIM's trunks by the names of their tensors"
    )


def _model_type(config: Mapping[str, Any]) -> Any:
    """Returns the family that `model_type` and `architectures` agree on."""
    if "mm_vision_tower" in config:
        raise ValueError(
            "config.json: mm_vision_tower is a field of LLaVA's own checkpoints; only the layout "
            "of transformers is supported (as of llava-hf, whose config.json has a vision_config)"
        )
    model_type, classes = config.get("model_type"), config.get("architectures")
    if classes is None:
        return model_type
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"config.json: architectures={classes!r}: expected a list of names")
    if model_type not in (None, *_CLASS_NAMES) or not classes:
        return model_type
    found = [family for family in _CLASS_NAMES if _known_classes(family) & set(classes)]
    if model_type is None and found:
        return found[0]
    if model_type is not None and model_type not in found:
        raise ValueError(
            f"config.json: architectures={classes}: model_type={model_type!r} expects one of "
            f"{', '.join(sorted(_known_classes(model_type)))}"
        )
    return model_type


def _known_classes(family: str) -> set[str]:
    """Returns the class names of a family, as `architectures` lists them."""
    name = _CLASS_NAMES[family]
    if family == llava.MODEL_TYPE:
        return {f"{name}ForConditionalGeneration"}
    if family in llama.MODEL_TYPES:
        return {f"{name}ForCausalLM", f"{name}Model"}
    return {f"{name}Model", f"{name}ModelWithProjection"}


def _complete_aim(config: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    shape = specs[_AIM_KERNEL].shape
    if len(shape) != 4:
        raise ValueError(f"{_AIM_KERNEL} is {list(shape)}; a convolution has four dimensions")
    sizes = {
        "patch_size": shape[2],
        "embed_dim": shape[0],
        "num_blocks": len({n.split(".")[2] for n in specs if n.startswith("trunk.blocks.")}),
    }
    for name, value in sizes.items():
        if config.get(name, value) != value:
            raise ValueError(
                f"config.json: {name}={config[name]!r}: the checkpoint has tensors of {value}"
            )
    num_heads = max(1, sizes["embed_dim"] // _AIM_HEAD_DIM)
    return {"num_heads": num_heads, **config, **sizes, "model_type": _AIM}


def source_config(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the name and the content of the file that a complete config was read from."""
    own = {k: v for k, v in config.items() if k != _PREPROCESSOR}
    if config["model_type"] not in (_OPEN_CLIP, _AIM):
        return "config.json", own
    del own["model_type"]
    if config["model_type"] == _OPEN_CLIP:
        return "open_clip_config.json", own
    return "config.json", _with_aim_names(own)


def _with_aim_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an AIM config with its authors' field names, which older folders did not keep."""
    return {"img_size" if k == "image_size" else k: v for k, v in config.items()}


def fields_of(config: Mapping[str, Any], *, strict: bool = True) -> Fields:
    """Returns the fields of a complete config.

    Args:
        strict: Whether unknown fields raise; False for configs that were read before.
    """
    model_type = config["model_type"]
    file = "open_clip_config.json" if model_type == _OPEN_CLIP else "config.json"
    ours = ("model_type", "architectures", _PREPROCESSOR)
    if model_type == _OPEN_CLIP:
        ours = ("model_type",)
    given = {name: value for name, value in config.items() if name not in ours}
    given = _with_aim_names(given) if model_type == _AIM else given
    return Fields(given, _CLASSES[model_type], file=file, strict=strict)


def make_parts(
    config: Mapping[str, Any], changes: Changes, *, strict: bool = True
) -> dict[str, InstantiableConfig]:
    """Returns the parts of an `MM1` in a checkpoint with this complete config.

    Args:
        strict: See `fields_of`.
    """
    fields = fields_of(config, strict=strict)
    parts: dict[str, Any] = _read_parts(fields, config["model_type"])
    if changes.both_towers:
        parts = _read_pair(fields, config["model_type"], parts[vision.ENCODER])
    if vision.ENCODER in parts and (processor := config.get(_PREPROCESSOR)) is not None:
        klass = vision.CLIP_PROCESSOR
        if parts[vision.ENCODER].class_token is None:
            klass = vision.SIGLIP_PROCESSOR
        given = {name: value for name, value in processor.items() if name != "file"}
        vision.set_pixels(parts[vision.ENCODER], Fields(given, klass, file=processor["file"]))
    fields.close()
    holder = next((name for name in ("decoder", clip.TEXT) if name in parts), None)
    if holder is None and changes != Changes():
        raise ValueError(
            "vocab_size and num_experts apply to a decoder, and this checkpoint has none"
        )
    if holder is not None:
        parts[holder] = _with_changes(parts[holder], changes)
    return parts


def _read_pair(fields: Fields, model_type: str, encoder: Any) -> dict[str, Any]:
    """Returns the parts of a whole CLIP or SigLIP."""
    readers = {
        "clip": clip.hf_clip_parts,
        "siglip": clip.siglip_parts,
        _OPEN_CLIP: clip.open_clip_parts,
    }
    if model_type not in readers:
        raise ValueError(
            f"a {model_type} has no text tower; both are read from {', '.join(readers)}"
        )
    return readers[model_type](fields, encoder)


def _read_parts(fields: Fields, model_type: str) -> dict[str, Any]:
    if model_type == llava.MODEL_TYPE:
        encoder, connector, decoder = llava.llava_parts(fields)
        return {vision.ENCODER: encoder, "connector": connector, "decoder": decoder}
    if model_type in llama.MODEL_TYPES:
        return {"decoder": llama.decoder_config(fields)}
    if model_type in _CLIP:
        encoder = vision.hf_clip_config(_tower(fields, model_type))
    elif model_type in _SIGLIP:
        encoder = vision.siglip_config(_tower(fields, model_type))
    elif model_type == _OPEN_CLIP:
        encoder = vision.open_clip_config(fields)
    else:
        encoder = vision.aim_config(fields)
    return {vision.ENCODER: encoder}


def _tower(fields: Fields, model_type: str) -> Fields:
    """Returns the fields of a CLIP or SigLIP tower, alone or beside a text tower."""
    if model_type == "clip":
        return vision.clip_pair_section(fields)
    if model_type == "siglip":
        return fields.section("vision_config", vision.SIGLIP_VISION)
    return fields


def make_table(
    parts: Mapping[str, Any], config: Mapping[str, Any], names: Collection[str]
) -> Table:
    """Returns the table of a checkpoint with these parts and tensor names."""
    model_type, fields = config["model_type"], fields_of(config)
    if clip.TEXT in parts:
        if model_type == _OPEN_CLIP:
            rank = int(bool(config["model_cfg"].get("nonscalar_logit_scale")))
            return clip_tensors.open_clip_pair_table(parts, names, rank)
        return clip_tensors.hf_pair_table(parts, names)
    if model_type == llava.MODEL_TYPE:
        encoder, connector, decoder = parts.values()
        return llava.llava_table(encoder, connector, decoder, names, fields)
    if model_type in llama.MODEL_TYPES:
        return llama_tensors.decoder_table(parts["decoder"], names, fields)
    encoder = parts[vision.ENCODER]
    if model_type == _OPEN_CLIP:
        return vision_tensors.open_clip_table(encoder, names)
    return (
        vision_tensors.aim_table(encoder)
        if model_type == _AIM
        else vision_tensors.hf_table(encoder, names)
    )


def left_out(config: Mapping[str, Any]) -> list[str]:
    """Returns sizes that a complete config leaves out, with the defaults used instead."""
    fields = fields_of(config)
    _read_parts(fields, config["model_type"])
    return fields.left_out()


def num_rows(config: Mapping[str, Any]) -> int:
    """Returns the number of embedding rows of a decoder; 0 for other models."""
    model_type = _model_type(config)
    if model_type not in (*llama.MODEL_TYPES, llava.MODEL_TYPE):
        return 0
    fields = fields_of({**config, "model_type": model_type})
    return _read_parts(fields, model_type)["decoder"].vocab_size


def reference_config(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns `model_type` and fields of the transformers config for a complete config.

    Leaves out fields that change no output, since transformers no longer accepts old ones. A model
    with a text tower gets the config of its vision tower.
    """
    model_type = config["model_type"]
    given = fields_of(config).given
    if model_type in ("clip", "siglip"):
        section = _tower(fields_of(config), model_type)
        klass = vision.CLIP_VISION if model_type == "clip" else vision.SIGLIP_VISION
        return f"{model_type}_vision_model", essential(section.given, klass)
    result = essential(given, _CLASSES[model_type])
    if model_type == llava.MODEL_TYPE:
        for name, section in llava.sections(fields_of(config)).items():
            if section.given:
                kind = {k: v for k, v in section.given.items() if k == "model_type"}
                result[name] = {**essential(section.given, section.klass), **kind}
    return model_type, result


def pair_reference(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the same as `reference_config` for a whole CLIP or SigLIP."""
    model_type, given = config["model_type"], fields_of(config).given
    is_clip = model_type == "clip"
    text = given.get("text_config_dict") or given.get("text_config") or {}
    tower = given.get("vision_config_dict") or given.get("vision_config") or {}
    fields: dict[str, Any] = {
        "text_config": essential(text, clip.CLIP_TEXT if is_clip else clip.SIGLIP_TEXT),
        "vision_config": essential(tower, vision.CLIP_VISION if is_clip else vision.SIGLIP_VISION),
    }
    if "eos_token_id" in text:
        fields["text_config"]["eos_token_id"] = text["eos_token_id"]
    if is_clip and "projection_dim" in given:
        fields["projection_dim"] = given["projection_dim"]
    return model_type, fields


def image_token(config: Mapping[str, Any]) -> int | None:
    """Returns the image token id of a LLaVA; None for other models."""
    is_llava = config.get("model_type") == llava.MODEL_TYPE
    return llava.image_token(fields_of(config)) if is_llava else None


def _with_changes(cfg: Any, changes: Changes) -> Any:
    if changes.vocab_size is not None:
        if changes.vocab_size < cfg.vocab_size:
            raise ValueError(
                f"vocab_size={changes.vocab_size}: the source has {cfg.vocab_size} rows, and no "
                "rows are removed"
            )
        cfg.vocab_size = changes.vocab_size
    if changes.num_experts is None:
        return cfg
    if not hasattr(cfg, "moe"):
        raise ValueError("num_experts applies to a decoder; a text tower stays dense")
    return llama.upcycled(cfg, num_experts=changes.num_experts, moe_every=changes.moe_every)
