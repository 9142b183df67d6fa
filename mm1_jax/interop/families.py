"""Reads the config of a foreign checkpoint, and makes the parts and the table that convert it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm1_jax.config import InstantiableConfig
from mm1_jax.interop import (
    aim,
    clip,
    clip_tensors,
    llama,
    llama_tensors,
    llava,
    vision,
    vision_tensors,
)
from mm1_jax.interop.fields import Fields, essential
from mm1_jax.interop.mapping import Table, prefix_of
from mm1_jax.interop.tensor_files import TensorSpec
from mm1_jax.storage import read_json_object

# Config files of checkpoints, in order of preference.
CONFIGS = ("config.json", "open_clip_config.json")
_AIM_HEAD_DIM = 128  # In all published AIM trunks.
_SIGLIP, _CLIP = ("siglip", "siglip_vision_model"), ("clip", "clip_vision_model")
_AIMV2 = ("aimv2", "aimv2_vision_model")
# Our names: the configs of these two have no `model_type`.
_OPEN_CLIP, _AIM = "open_clip", "aim"
_FAMILIES = (*llama.MODEL_TYPES, *_CLIP, *_SIGLIP, *_AIMV2, llava.MODEL_TYPE, _OPEN_CLIP, _AIM)
# Families with a text tower.
PAIRS = ("clip", "siglip", _OPEN_CLIP)
_CLASSES = {
    **llama.CLASSES,
    "clip": vision.CLIP,
    "clip_vision_model": vision.CLIP_VISION,
    "siglip": vision.SIGLIP,
    "siglip_vision_model": vision.SIGLIP_VISION,
    llava.MODEL_TYPE: llava.LLAVA,
    "aimv2": aim.AIMV2,
    "aimv2_vision_model": aim.AIMV2_VISION,
    _OPEN_CLIP: vision.OPEN_CLIP,
    _AIM: aim.AIM,
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
    "aimv2": "Aimv2",
    "aimv2_vision_model": "Aimv2Vision",
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
        vision_only: Leaves out the text tower of a CLIP, its projections and its pooling.
    """

    vocab_size: int | None = None
    num_experts: int | None = None
    moe_every: int = 1
    vision_only: bool = False


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
    if aim.PATCH_KERNEL in specs:
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
    if family == "aimv2":
        # The second is that of apple/ml-aim, whose vision model has this family too.
        return {"Aimv2Model", "AIMv2Model"}
    if family == llava.MODEL_TYPE:
        return {f"{name}ForConditionalGeneration"}
    if family in llama.MODEL_TYPES:
        return {f"{name}ForCausalLM", f"{name}Model"}
    return {f"{name}Model", f"{name}ModelWithProjection"}


def _complete_aim(config: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    shape = specs[aim.PATCH_KERNEL].shape
    if len(shape) != 4:
        raise ValueError(f"{aim.PATCH_KERNEL} is {list(shape)}; a convolution has four dimensions")
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
    klass = _CLASSES[model_type]
    if model_type == "aimv2" and "hidden_size" in given:
        klass = aim.AIMV2_ORIGINAL
    return Fields(given, klass, file=file, strict=strict)


def make_parts(
    config: Mapping[str, Any], changes: Changes, *, strict: bool = True
) -> dict[str, InstantiableConfig]:
    """Returns the parts of a model of ours in a checkpoint with this complete config.

    Args:
        strict: See `fields_of`.

    Raises:
        ValueError: A field is not supported.
    """
    try:
        return _make_parts(config, changes, strict)
    except ValueError as error:
        raise _with_way_out(error, config, changes) from None


def _with_way_out(
    error: ValueError, config: Mapping[str, Any], changes: Changes | None = None
) -> ValueError:
    """Returns an error about a CLIP; if its vision tower can be read, the message says how."""
    if config["model_type"] not in PAIRS or (changes is not None and changes.vision_only):
        return error
    try:
        _make_parts(config, Changes(vision_only=True), True)
    except ValueError:
        return error
    return ValueError(f"{error}. --vision_only imports the vision tower alone")


def _make_parts(
    config: Mapping[str, Any], changes: Changes, strict: bool
) -> dict[str, InstantiableConfig]:
    fields = fields_of(config, strict=strict)
    model_type = config["model_type"]
    parts: dict[str, Any] = _read_parts(fields, model_type, changes.vision_only)
    if vision.ENCODER in parts and (processor := config.get(_PREPROCESSOR)) is not None:
        klass = vision.CLIP_PROCESSOR
        if parts[vision.ENCODER].class_token is None:
            klass = vision.SIGLIP_PROCESSOR
        given = {name: value for name, value in processor.items() if name != "file"}
        vision.set_pixels(parts[vision.ENCODER], Fields(given, klass, file=processor["file"]))
    fields.close()
    if changes.vision_only and (model_type not in PAIRS or changes.vocab_size is not None):
        raise ValueError(
            "vision_only applies to a CLIP with a text tower, and leaves no vocabulary"
        )
    if "decoder" in parts:
        parts["decoder"] = _with_changes(parts["decoder"], changes)
    elif clip_tensors.TEXT in parts and changes.num_experts is None:
        parts[clip_tensors.TEXT] = _with_rows(parts[clip_tensors.TEXT], changes.vocab_size)
    elif (changes.vocab_size, changes.num_experts) != (None, None):
        raise ValueError(
            "vocab_size and num_experts apply to a decoder, and this checkpoint has none"
        )
    return parts


def _read_parts(fields: Fields, model_type: str, vision_only: bool = False) -> dict[str, Any]:
    if model_type == llava.MODEL_TYPE:
        encoder, connector, decoder = llava.llava_parts(fields)
        return {vision.ENCODER: encoder, "connector": connector, "decoder": decoder}
    if model_type in llama.MODEL_TYPES:
        return {"decoder": llama.decoder_config(fields)}
    if model_type in PAIRS and not vision_only:
        return clip.parts_of_clip(_clip_model(fields, model_type))
    if vision_only and model_type in PAIRS:
        clip.skip_text(fields)
    if model_type in _CLIP:
        encoder = vision.hf_clip_config(_tower(fields, model_type))
    elif model_type in _SIGLIP:
        encoder = vision.siglip_config(_tower(fields, model_type))
    elif model_type == _OPEN_CLIP:
        encoder = vision.open_clip_config(fields)
    elif model_type in _AIMV2:
        is_pair = fields.klass is aim.AIMV2
        tower = fields.section("vision_config", aim.AIMV2_VISION) if is_pair else fields
        encoder = aim.aimv2_config(tower)
    else:
        encoder = aim.aim_config(fields)
    return {vision.ENCODER: encoder}


def _clip_model(fields: Fields, model_type: str) -> Any:
    if model_type == "clip":
        return clip.hf_clip(fields)
    return clip.hf_siglip(fields) if model_type == "siglip" else clip.open_clip(fields)


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
    if model_type == llava.MODEL_TYPE:
        encoder, connector, decoder = parts.values()
        return llava.llava_table(encoder, connector, decoder, names, fields)
    if model_type in llama.MODEL_TYPES:
        return llama_tensors.decoder_table(parts["decoder"], names, fields)
    encoder = parts[vision.ENCODER]
    if clip_tensors.TEXT in parts:
        return _pair_table(parts, model_type, fields, names)
    if model_type == _OPEN_CLIP:
        return vision_tensors.open_clip_table(encoder, names)
    if model_type == _AIM or (model_type in _AIMV2 and aim.PATCH_KERNEL in names):
        return aim.aim_table(encoder)
    if model_type in _AIMV2:
        return aim.aimv2_table(encoder, names)
    return vision_tensors.hf_table(encoder, names)


def _pair_table(
    parts: Mapping[str, Any], model_type: str, fields: Fields, names: Collection[str]
) -> Table:
    model = _clip_model(fields, model_type)
    options: dict[str, Any] = {
        "num_rows": model.text_encoder.vocab_size,
        "has_bias": model.initial_bias is not None,
    }
    if model_type != _OPEN_CLIP:
        return clip_tensors.hf_pair_table(parts, names, **options)
    is_vector = vision.open_clip_sections(fields)[0].flag("nonscalar_logit_scale")
    options["scalar_shape"] = (1,) if is_vector else ()
    return clip_tensors.open_clip_pair_table(parts, names, **options)


def left_out(config: Mapping[str, Any], vision_only: bool = False) -> list[str]:
    """Returns sizes that a complete config leaves out, with the defaults used instead."""
    fields = fields_of(config)
    _read_parts(fields, config["model_type"], vision_only)
    return fields.left_out()


def has_unread_text(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Returns whether a checkpoint has the config of a CLIP, but the tensors of its tower alone."""
    return config["model_type"] in PAIRS and not clip_tensors.has_text_tower(names)


def num_rows(config: Mapping[str, Any]) -> int:
    """Returns the number of embedding rows of a decoder or a text tower; 0 for other models."""
    model_type = _OPEN_CLIP if "model_cfg" in config else _model_type(config)
    complete = {**config, "model_type": model_type}
    if model_type in PAIRS:
        try:
            return _clip_model(fields_of(complete), model_type).text_encoder.vocab_size
        except ValueError as error:
            raise _with_way_out(error, complete) from None
    if model_type not in (*llama.MODEL_TYPES, llava.MODEL_TYPE):
        return 0
    return _read_parts(fields_of(complete), model_type)["decoder"].vocab_size


def reference_config(
    config: Mapping[str, Any], *, vision_only: bool = False
) -> tuple[str, dict[str, Any]]:
    """Returns `model_type` and fields of the transformers config for a complete config.

    Leaves out fields that change no output, since transformers no longer accepts old ones.

    Args:
        vision_only: Returns the config of the vision tower of a model with a text tower.
    """
    model_type, fields = config["model_type"], fields_of(config)
    if vision_only and model_type in ("clip", "siglip"):
        section = _tower(fields, model_type)
        return f"{model_type}_vision_model", essential(section.given, section.klass)
    if model_type == "aimv2":
        section = fields.section("vision_config", aim.AIMV2_VISION)
        return "aimv2_vision_model", {**essential(section.given, section.klass), "use_head": False}
    result = essential(fields.given, _CLASSES[model_type])
    sections: Mapping[str, Fields] = {}
    if model_type == llava.MODEL_TYPE:
        sections = llava.sections(fields)
    elif model_type in PAIRS:
        sections = {"vision_config": _tower(fields, model_type)}
        sections["text_config"] = clip.text_section(fields, model_type)
        result = {k: v for k, v in result.items() if not k.endswith("_config_dict")}
    elif model_type == "aimv2_vision_model":
        result["use_head"] = False
    for name, section in sections.items():
        if section.given:
            kind = {k: v for k, v in section.given.items() if k == "model_type"}
            result[name] = {**essential(section.given, section.klass), **kind}
    return model_type, result


def image_token(config: Mapping[str, Any]) -> int | None:
    """Returns the image token id of a LLaVA; None for other models."""
    is_llava = config.get("model_type") == llava.MODEL_TYPE
    return llava.image_token(fields_of(config)) if is_llava else None


def _with_rows(cfg: Any, vocab_size: int | None) -> Any:
    if vocab_size is not None:
        if vocab_size < cfg.vocab_size:
            raise ValueError(
                f"vocab_size={vocab_size}: the source has {cfg.vocab_size} rows, and no rows are "
                "removed"
            )
        cfg.vocab_size = vocab_size
    return cfg


def _with_changes(cfg: Any, changes: Changes) -> Any:
    cfg = _with_rows(cfg, changes.vocab_size)
    if changes.num_experts is None:
        return cfg
    return llama.upcycled(cfg, num_experts=changes.num_experts, moe_every=changes.moe_every)
