"""What is in a folder of a foreign checkpoint, and the table that it is converted by."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm1_jax.config import InstantiableConfig
from mm1_jax.interop import llama, llava, vision
from mm1_jax.interop.mapping import Table, prefix_of
from mm1_jax.interop.tensor_files import TensorSpec

# Files that say what a checkpoint is.
CONFIGS = ("config.json", "open_clip_config.json")
_AIM_KERNEL = "preprocessor.patchifier.proj.weight"
_AIM_HEAD_DIM = 128  # Of all of AIM's published trunks.
_SIGLIP, _CLIP = ("siglip", "siglip_vision_model"), ("clip", "clip_vision_model")
# These two have no such field themselves.
_OPEN_CLIP, _AIM = "open_clip", "aim"
_FAMILIES = (*llama.MODEL_TYPES, *_CLIP, *_SIGLIP, llava.MODEL_TYPE, _OPEN_CLIP, _AIM)


@dataclass(frozen=True)
class Changes:
    """What a conversion changes besides names and layouts.

    Attributes:
        vocab_size: Rows of the embedding and the output layer, at least as many as the source has;
            new ones are the mean of the others. None: those of the source.
        num_experts: Of every `moe_every`-th layer, copies of the dense one; None keeps it dense.
    """

    vocab_size: int | None = None
    num_experts: int | None = None
    moe_every: int = 1


def read_config(source: Path) -> dict[str, Any]:
    """The config beside the tensors of a checkpoint; empty where there is none.

    Raises:
        ValueError: It cannot be read.
    """
    folder = source if source.is_dir() else source.parent
    for name in CONFIGS:
        if (folder / name).is_file():
            try:
                return json.loads((folder / name).read_text())
            except ValueError as error:
                raise ValueError(f"{folder / name}: no JSON ({error})") from None
    return {}


def complete_config(config: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    """The config with a `model_type` and all sizes, some of which only the tensors tell.

    Raises:
        ValueError: It is of no known family.
    """
    if config.get("model_type") in _FAMILIES:
        return dict(config)
    if "model_cfg" in config:
        return {**config, "model_type": _OPEN_CLIP}
    if _AIM_KERNEL in specs:
        embed_dim, _, patch_size, _ = specs[_AIM_KERNEL].shape
        return {
            "model_type": _AIM,
            "image_size": config.get("img_size", 224),
            "patch_size": patch_size,
            "embed_dim": embed_dim,
            "num_blocks": len({n.split(".")[2] for n in specs if n.startswith("trunk.blocks.")}),
            "num_heads": config.get("num_heads", embed_dim // _AIM_HEAD_DIM),
        }
    if prefix_of(specs, "conv1.weight") is not None:
        raise ValueError("a tower of open_clip needs its open_clip_config.json beside it")
    raise ValueError(
        f"model_type={config.get('model_type')!r}: no known family. Known are "
        f"{', '.join(_FAMILIES[:-2])}; open_clip's towers by their open_clip_config.json, and "
        "AIM's trunks by the names of their tensors"
    )


def source_config(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The file that a complete config was read from, and what was in it."""
    if config["model_type"] == _OPEN_CLIP:
        return "open_clip_config.json", {k: v for k, v in config.items() if k != "model_type"}
    if config["model_type"] == _AIM:
        own = {k: v for k, v in config.items() if k not in ("model_type", "image_size")}
        return "config.json", {"img_size": config["image_size"], **own}
    return "config.json", dict(config)


def make_parts(config: Mapping[str, Any], changes: Changes) -> dict[str, InstantiableConfig]:
    """The parts of an `MM1` that a checkpoint with this complete config has.

    Raises:
        ValueError: It has something that ours has not.
    """
    model_type = config["model_type"]
    if model_type == llava.MODEL_TYPE:
        encoder, connector, decoder = llava.llava_parts(config)
        return {
            vision.ENCODER: encoder,
            "connector": connector,
            "decoder": _changed(decoder, changes),
        }
    if model_type in llama.MODEL_TYPES:
        return {"decoder": _changed(llama.decoder_config(config), changes)}
    if changes != Changes():
        raise ValueError("a vocabulary and experts are of decoders; this checkpoint has none")
    if model_type in _CLIP:
        encoder = vision.hf_clip_config(config.get("vision_config", config))
    elif model_type in _SIGLIP:
        encoder = vision.siglip_config(config.get("vision_config", config))
    elif model_type == _OPEN_CLIP:
        encoder = vision.open_clip_config(config["model_cfg"], config.get("preprocess_cfg", {}))
    else:
        encoder = vision.aim_config(**{k: v for k, v in config.items() if k != "model_type"})
    return {vision.ENCODER: encoder}


def make_table(
    parts: Mapping[str, Any], config: Mapping[str, Any], names: Collection[str]
) -> Table:
    """The table of a checkpoint with these parts, whose tensors have these names."""
    model_type = config["model_type"]
    if model_type == llava.MODEL_TYPE:
        encoder, connector, decoder = parts.values()
        return llava.llava_table(encoder, connector, decoder, names, config)
    if model_type in llama.MODEL_TYPES:
        return llama.decoder_table(parts["decoder"], names, config)
    encoder = parts[vision.ENCODER]
    if model_type == _OPEN_CLIP:
        return vision.open_clip_table(encoder, names)
    return vision.aim_table(encoder) if model_type == _AIM else vision.hf_table(encoder, names)


def _changed(cfg: Any, changes: Changes) -> Any:
    if changes.vocab_size is not None:
        if changes.vocab_size < cfg.vocab_size:
            raise ValueError(
                f"vocab_size={changes.vocab_size}: the source has {cfg.vocab_size} rows, and none "
                "is taken away"
            )
        cfg.vocab_size = changes.vocab_size
    if changes.num_experts is None:
        return cfg
    return llama.upcycled(cfg, num_experts=changes.num_experts, moe_every=changes.moe_every)
