"""Exports encoders that were trained here: whole CLIPs and SigLIPs, and AIM trunks.

The folder is imported before it gets its name: every tensor must be that of the run bit for bit (in
the dtype of the export), and the config must describe the same parts.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mm1_jax.checkpoints.weights_folder import StoredParams
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.interop import clip, clip_tensors, compare, vision, vision_tensors
from mm1_jax.interop.compare import Comparison
from mm1_jax.interop.convert import Watch, differences, export_params, raise_if_params_misfit
from mm1_jax.interop.exporter import (
    EXPORT_DTYPES,
    Exported,
    NativeModel,
    raise_if_bad,
    raise_if_present,
    rounded,
    why_not_compared,
)
from mm1_jax.interop.families import Changes
from mm1_jax.interop.fields import Fields
from mm1_jax.interop.importer import ParamsOf, examine
from mm1_jax.interop.mapping import Entry
from mm1_jax.interop.tensor_files import DTYPES, TensorFolder
from mm1_jax.interop.tokenizers import caption_tokenizer
from mm1_jax.models.text_encoder import TextPooling
from mm1_jax.storage import whole_folder
from mm1_jax.stored_config import flat_fields

OPEN_CLIP_CONFIG, OPEN_CLIP_TENSORS = "open_clip_config.json", "open_clip_model.safetensors"
# Fields that decide what a part computes, besides its shapes.
_COMPUTATION = (
    *("activation", "eps", "pixel_mean", "pixel_std", "pooling", "padding_token", "pattern"),
    *("patch_size", "image_size"),
)
# AIM's evaluation crops this fraction of the resized picture.
_AIM_CROP = 0.875


def hf_pair(model: Any, tokenizer: Tokenizer) -> NativeModel:
    """Returns a resolved `CLIP.Config` as a model of transformers.

    Raises:
        ValueError: transformers has no such model.
    """
    parts, scalars = clip.parts_of_model(model), clip.scalars_of_model(model)
    config = clip.hf_config(parts, scalars, _tokens(tokenizer))
    return NativeModel(config, clip_tensors.hf_entries(parts))


def open_clip_pair(model: Any, tokenizer: Tokenizer) -> NativeModel:
    """Returns a resolved `CLIP.Config` as a model of open_clip; raises ValueError if it is none."""
    parts, scalars = clip.parts_of_model(model), clip.scalars_of_model(model)
    config = clip.open_clip_config(parts, scalars, _tokens(tokenizer))
    return NativeModel(config, clip_tensors.open_clip_entries(parts, scalars))


def _tokens(tokenizer: Tokenizer) -> dict[str, int]:
    return {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.pad}


def aim_trunk(encoder: Any) -> NativeModel:
    """Returns a trunk as apple/ml-aim's.

    Raises:
        ValueError: It differs from an AIM trunk.
    """
    config = {
        "img_size": encoder.image_size,
        "patch_size": encoder.patch_size,
        "embed_dim": encoder.model_dim,
        "num_blocks": encoder.num_layers,
        "num_heads": encoder.num_heads,
    }
    theirs = vision.aim_config(Fields(config, vision.AIM))
    theirs.set(pixel_mean=encoder.pixel_mean, pixel_std=encoder.pixel_std)
    if wrong := [
        name
        for name in ("class_token", "pre_norm")
        if (getattr(theirs, name) is None) is not (getattr(encoder, name) is None)
    ]:
        raise ValueError(f"an AIM trunk has no {wrong[0]}; vision_encoder has one")
    raise_if_other_computation({vision.ENCODER: encoder}, {vision.ENCODER: theirs}, ("pattern",))
    return NativeModel(config, list(vision_tensors.aim_table(theirs).entries))


def export_encoder(
    stored: StoredParams,
    model: NativeModel,
    parts: Mapping[str, Any],
    output: Path,
    *,
    files: Mapping[str, bytes],
    dtype: str = "float32",
    max_shard_bytes: int = 5 * 10**9,
    skip_comparison: bool = False,
    comparison_bytes: int = compare.DEFAULT_BYTES,
    watch: Watch = lambda name, size: None,
) -> Exported:
    """Writes a model in one of the formats of this module, and reads it back.

    Args:
        parts: The parts of the model, by `clip.parts_of_model`, or the trunk alone.
        files: Files to write beside the tensors: tokenizer, preprocessing, model card.

    Raises:
        ValueError: A parameter is missing or misshapen, or the folder is not read back as it was;
            then `output` does not exist.
    """
    raise_if_present(output)
    raise_if_params_misfit(model.entries, stored, " and ".join(parts), "checkpoint")
    is_open_clip, is_pair = "model_cfg" in model.config, len(parts) > 1
    with whole_folder(output) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        config = dict(model.config)
        if not is_open_clip:
            config |= {"dtype": dtype, "torch_dtype": dtype} if is_pair else {}
        name = OPEN_CLIP_CONFIG if is_open_clip else "config.json"
        (folder / name).write_text(json.dumps(config, indent=2) + "\n")
        export_params(
            model.entries,
            stored.read,
            folder,
            dtype=DTYPES[EXPORT_DTYPES[dtype]],
            # open_clip reads a single file.
            max_shard_bytes=2**62 if is_open_clip else max_shard_bytes,
            watch=watch,
        )
        if is_open_clip:
            (written,) = folder.glob("*.safetensors")
            written.rename(folder / OPEN_CLIP_TENSORS)
        _read_back(folder, model.entries, stored, parts)
        num_parameters = sum(math.prod(entry.shape) for entry in model.entries)
        reason = why_not_compared(num_parameters, skip_comparison, comparison_bytes)
        if is_open_clip or not is_pair:
            reason = "the folder was read back bit for bit; transformers has no such model"
        comparison: Comparison | None = None
        if reason is None:
            comparison = compare_pair(stored, parts, folder, dtype)
            raise_if_bad(comparison)
    kind = "open_clip" if is_open_clip else model.config.get("model_type", "aim")
    return Exported(num_parameters, kind, comparison, reason)


def _read_back(
    folder: Path, entries: Sequence[Entry], stored: StoredParams, parts: Mapping[str, Any]
) -> None:
    """Raises ValueError if an import of the folder would have other parts or values."""
    examined = examine(folder, Changes(both_towers=len(parts) > 1))
    found = {entry.name: entry for entry in examined.table.entries}
    wrong = [entry.name for entry in entries if found.get(entry.name) != entry]
    wrong += [name for name in found if name not in {entry.name for entry in entries}]
    wrong += differences(entries, TensorFolder(folder), stored.read)
    if wrong:
        raise ValueError(f"{folder.name}: {', '.join(wrong[:8])} read back changed")
    ignored = ("pattern",) if len(parts) == 1 else ()
    raise_if_other_computation(parts, examined.table.parts, ignored)


def raise_if_other_computation(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], ignored: Sequence[str] = ()
) -> None:
    """Raises ValueError if parts differ in fields that shapes do not reveal."""
    for part, cfg in ours.items():
        fields, others = (_computation(each, ignored) for each in (cfg, theirs[part]))
        for path in sorted(fields.keys() | others.keys()):
            if fields.get(path) != others.get(path):
                raise ValueError(
                    f"{part}.{path} is {fields.get(path)!r}, and the format can only hold "
                    f"{others.get(path)!r}"
                )


def _computation(cfg: Any, ignored: Sequence[str]) -> dict[str, Any]:
    return {
        path: value
        for path, value in flat_fields(cfg).items()
        if (name := path.rpartition(".")[2].partition("[")[0]) in _COMPUTATION
        and name not in ignored
    }


def compare_pair(
    stored: StoredParams, parts: Mapping[str, Any], folder: Path, dtype: str
) -> Comparison:
    """Compares features of random images and texts of our CLIP, and of its export."""
    scalars = tuple(name for name in (clip.SCALE, clip.BIAS) if name in stored.shapes)
    cfg = clip.model_of_parts(parts, scalars)
    params = ParamsOf(stored, change=lambda x: rounded(np.asarray(x), dtype))
    return compare.compare_pair(cfg, params, compare.FolderModel(folder))


def preprocessing(encoder: Any, *, is_clip: bool) -> dict[str, bytes]:
    """Returns the `preprocessor_config.json` of a model of transformers."""
    side = encoder.image_size
    config: dict[str, Any] = {
        "resample": 3,  # Pillow's bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(encoder.pixel_mean),
        "image_std": list(encoder.pixel_std),
        "do_resize": True,
    }
    if is_clip:
        config |= {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "size": {"shortest_edge": side},
            "do_center_crop": True,
            "crop_size": {"height": side, "width": side},
        }
    else:
        config |= {
            "image_processor_type": "SiglipImageProcessor",
            "size": {"height": side, "width": side},
        }
    return {"preprocessor_config.json": (json.dumps(config, indent=2) + "\n").encode()}


def aim_preprocessing(encoder: Any) -> dict[str, bytes]:
    """Returns a `preprocessor_config.json` with the resize and crop of AIM's evaluation."""
    side = encoder.image_size
    config = json.loads(preprocessing(encoder, is_clip=True)["preprocessor_config.json"])
    config["size"] = {"shortest_edge": round(side / _AIM_CROP)}
    return {"preprocessor_config.json": (json.dumps(config, indent=2) + "\n").encode()}


def clip_files(model: Any, tokenizer: Tokenizer, *, is_open_clip: bool) -> dict[str, bytes]:
    """Returns the files of tokenizer and preprocessing of a resolved `CLIP.Config`."""
    text = model.text_encoder
    reads_padding = text.pooling is TextPooling.LAST
    padding = text.padding_token if reads_padding else None
    if reads_padding and padding not in (*tokenizer.not_text, tokenizer.eos):
        raise ValueError(
            f"model.text_encoder.padding_token={padding}: is a token of texts, which transformers "
            "would take for padding; train with the id of a special token"
        )
    files = caption_tokenizer(tokenizer, text.max_length, padding)
    if is_open_clip:
        return files
    is_clip = model.image_projection is not None
    return files | preprocessing(model.vision_encoder, is_clip=is_clip)
