"""Exports our parameters to a folder that transformers loads, checked before it gets its name.

Some exports need no code of ours: a decoder alone (Llama, Qwen or Mixtral), an encoder alone, a
CLIP with its text tower, a model built like LLaVA, and imported weights in their source format.
Every other model is written with the code that runs it (`hf_model/`).
"""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mm1_jax.checkpoints.weights_folder import StoredParams, part_fields
from mm1_jax.config import InstantiableConfig
from mm1_jax.data.chat_formats.hf import CHAT_TEMPLATE
from mm1_jax.interop import clip, clip_tensors, compare, vision
from mm1_jax.interop.compare import Comparison
from mm1_jax.interop.convert import Watch, export_params, raise_if_params_misfit
from mm1_jax.interop.families import PAIRS, Changes, make_parts, make_table, source_config
from mm1_jax.interop.importer import ParamsOf, compare_with_source
from mm1_jax.interop.mapping import Entry
from mm1_jax.interop.mm1 import mm1_config, mm1_entries
from mm1_jax.interop.native import OPEN_CLIP, EncoderFacts, NativeModel
from mm1_jax.interop.passthrough import FOLDER, Passthrough
from mm1_jax.interop.tensor_files import DTYPES, TensorFolder
from mm1_jax.storage import whole_folder
from mm1_jax.stored_config import as_stored

# Code that is copied into the export of a whole model.
HF_MODEL = Path(__file__).parent / "hf_model"
TOKENIZER_CODE = "tokenization_mm1.py"
# Choices of tiles; a copy of the code of training, under a name of transformers' kind.
TILING_CODE = "tiling_mm1.py"
IMAGE_MARK = "<image>"
EXPORT_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


class Exported(NamedTuple):
    """Summary of an export and its check; its fields are those of `Imported`."""

    num_parameters: int
    model_type: str
    comparison: Comparison | None
    not_compared: str | None


class ExportedTokenizer(NamedTuple):
    """Files and special token ids of a tokenizer, as an export needs them.

    Attributes:
        files: Name -> content of the files that transformers loads.
        suppressed: Ids that generation never outputs.
        stops: Ids that end answers besides `eos`.
    """

    files: Mapping[str, bytes]
    bos: int
    eos: int
    pad: int
    suppressed: Sequence[int]
    stops: Sequence[int] = ()


def parts_of_weights(stored: StoredParams) -> dict[str, InstantiableConfig]:
    """Returns the parts of a folder of weights, from the config of its conversion.

    Fields keep the values that the conversion stored, even if the code now derives others.
    """
    description = stored.description
    if description is None:
        raise ValueError("this is a checkpoint of a run: take the parts from the config of the run")
    changes = Changes(**description["changes"])
    fields = part_fields(description)
    if vision.ENCODER in fields and len(fields) == 1:
        # Earlier conversions left out text towers without saying so.
        changes = replace(changes, vision_only=description["config"]["model_type"] in PAIRS)
    parts = make_parts(description["config"], changes, strict=False)
    return {name: as_stored(fields[name], cfg) for name, cfg in parts.items()}


def facts_of_weights(
    stored: StoredParams, tokenizer: Any | None, passthrough: Passthrough
) -> EncoderFacts:
    """Returns facts about a CLIP in a folder of weights, from the config of its conversion.

    Args:
        tokenizer: The tokenizer in the folder, if any.
    """
    assert stored.description is not None
    config = stored.description["config"]
    eos, resize = clip.eos_and_resize(config)
    has_tokenizer = tokenizer is not None or any("token" in file.name for file in passthrough.files)
    return EncoderFacts(
        has_bias=clip_tensors.BIAS in stored.shapes,
        eos=eos if tokenizer is None else tokenizer.eos,
        resize=resize,
        tokenizer=stored.description["source"] if has_tokenizer else None,
    )


def export_source(
    stored: StoredParams,
    weights: Path,
    output: Path,
    *,
    max_shard_bytes: int = 5 * 10**9,
    skip_comparison: bool = False,
    comparison_bytes: int = compare.DEFAULT_BYTES,
    watch: Watch = lambda name, size: None,
) -> Exported:
    """Writes imported weights in their source format: tensors bit for bit by name, and all files.

    Rows that were added to a vocabulary are left out.

    Args:
        weights: The folder of `stored`.

    Raises:
        ValueError: The weights come from a run or were upcycled, or the written model computes
            something else; then `output` does not exist.
    """
    _raise_if_present(output)
    description = stored.description
    if description is None or "tensors" not in description:
        raise ValueError(f"{weights}: was not imported, so it has no source format")
    changes = Changes(**description["changes"])
    if changes.num_experts is not None:
        raise ValueError(f"{weights}: was upcycled; its source has no experts")
    config, dtypes = description["config"], description["tensors"]
    table = make_table(parts_of_weights(stored), config, dtypes.keys())
    raise_if_params_misfit(table.entries, stored, " and ".join(table.parts), weights)
    passthrough, entries = Passthrough(weights), {entry.name: entry for entry in table.entries}
    if lost := sorted(dtypes.keys() - entries.keys() - passthrough.specs.keys()):
        raise ValueError(
            f"{weights}: {', '.join(lost[:8])} are missing from its subfolder {FOLDER}"
        )
    for name, spec in passthrough.specs.items():
        entries[name] = Entry(name, spec.shape, (), passthrough=name)
    with whole_folder(output) as folder:
        file_name, content = source_config(config)
        (folder / file_name).write_text(json.dumps(content, indent=2) + "\n")
        for path in passthrough.files:
            shutil.copyfile(path, folder / path.name)
        export_params(
            [entries[name] for name in dtypes],
            stored.read,
            folder,
            dtype={name: np.dtype(dtype) for name, dtype in dtypes.items()},
            passthrough=passthrough,
            max_shard_bytes=max_shard_bytes,
            watch=watch,
        )
        comparison, reason = None, "it was not asked for"
        if not skip_comparison:
            comparison, reason = compare_with_source(
                table, stored, config, TensorFolder(folder), comparison_bytes
            )
        if comparison is not None:
            raise_if_bad(comparison)
    num_parameters = sum(math.prod(entry.shape) for entry in table.entries)
    return Exported(num_parameters, config["model_type"], comparison, reason)


def export_native(
    stored: StoredParams,
    model: NativeModel,
    parts: Mapping[str, Any],
    output: Path,
    *,
    passthrough: Passthrough | None = None,
    tokenizer: ExportedTokenizer | None = None,
    model_card: str = "",
    dtype: str = "float32",
    max_shard_bytes: int = 5 * 10**9,
    skip_comparison: bool = False,
    comparison_bytes: int = compare.DEFAULT_BYTES,
    watch: Watch = lambda name, size: None,
) -> Exported:
    """Writes a model that another library implements.

    Args:
        model: Result of `native_model` or `native_llava`.
        passthrough: Tensors kept beside the weights, if `native_model` got their specs.

    Raises:
        ValueError: A parameter is missing or misshapen, or the written model computes something
            else; then `output` does not exist.
    """
    _raise_if_present(output)
    raise_if_params_misfit(model.entries, stored, " and ".join(parts), "checkpoint")
    has_decoder, has_text = "decoder" in parts, clip_tensors.TEXT in parts
    with whole_folder(output) as folder:
        config = dict(model.config)
        if model.library == "transformers":
            config |= {"dtype": dtype, "torch_dtype": dtype}
        for name, content in model.files.items():
            (folder / name).write_bytes(content)
        if tokenizer is not None and has_text:
            for name, content in tokenizer.files.items():
                (folder / name).write_bytes(content)
        elif tokenizer is not None:
            write_tokenizer(without_code(tokenizer, len(parts) > 1), config, folder)
        if has_text and passthrough is not None:
            for path in passthrough.files:
                shutil.copyfile(path, folder / path.name)
        if model_card:
            (folder / "README.md").write_text(model_card)
        if has_decoder and vision.ENCODER in parts:
            _write_llava_processor(parts[vision.ENCODER], folder)
        (folder / model.config_file).write_text(json.dumps(config, indent=2) + "\n")
        export_params(
            model.entries,
            stored.read,
            folder,
            dtype=DTYPES[EXPORT_DTYPES[dtype]],
            passthrough=passthrough,
            # open_clip reads a single file.
            max_shard_bytes=2**62 if model.library == OPEN_CLIP else max_shard_bytes,
            watch=watch,
        )
        if model.library == OPEN_CLIP:
            (folder / "model.safetensors").rename(folder / model.tensor_file)
        num_parameters = sum(math.prod(entry.shape) for entry in model.entries)
        reason = why_not_compared(num_parameters, skip_comparison, comparison_bytes)
        if reason is None and model.library != "transformers":
            reason = "transformers has no implementation that reads this export"
        comparison = None
        if reason is None:
            theirs = compare.FolderModel(folder)
            comparison = compare_native(stored, model, parts, theirs, dtype)
            raise_if_bad(comparison)
    return Exported(num_parameters, model.model_type, comparison, reason)


def compare_native(
    stored: StoredParams,
    model: NativeModel,
    parts: Mapping[str, Any],
    theirs: compare.FolderModel,
    dtype: str = "float32",
) -> Comparison:
    """Compares outputs of our parts, with parameters rounded to `dtype`, and of their export."""
    part = next(iter(parts)) if len(parts) == 1 else ""
    params = ParamsOf(stored, part, change=lambda x: rounded(x, dtype))
    if part == "decoder":
        return compare.compare_decoder(parts[part], params, theirs, parts[part].vocab_size)
    if part:
        return compare.compare_tower(parts[part], params, theirs)
    if clip_tensors.TEXT in parts:
        model_cfg = clip.clip_of_parts(parts, has_bias=clip_tensors.BIAS in stored.shapes)
        return compare.compare_clip(model_cfg, params, theirs)
    return compare.compare_llava(
        parts,
        params,
        theirs,
        num_rows=model.config["text_config"]["vocab_size"],
        image_token=model.config["image_token_index"],
    )


def export_mm1(
    stored: StoredParams,
    parts: Mapping[str, InstantiableConfig],
    output: Path,
    *,
    image_token: int,
    tokenizer: ExportedTokenizer | None = None,
    fit: str = "stretch",
    tiling: Mapping[str, Any] | None = None,
    model_card: str = "",
    dtype: str = "float32",
    max_shard_bytes: int = 5 * 10**9,
    skip_comparison: bool = False,
    comparison_bytes: int = compare.DEFAULT_BYTES,
    watch: Watch = lambda name, size: None,
) -> Exported:
    """Writes a whole model, with the code that runs it in transformers (`trust_remote_code`).

    Args:
        parts: Parts of an `MM1.Config`, from `mm1.model_parts`.
        fit: How images become square: "stretch" or "pad".
        tiling: Plain values of the tiling of pictures (`Tiling.exported`); None shows one view.

    Raises:
        ValueError: A parameter is missing or misshapen, a part has no counterpart, or the written
            model computes something else; then `output` does not exist.
    """
    _raise_if_present(output)
    entries = mm1_entries(parts)
    raise_if_params_misfit(entries, stored, "model", "checkpoint")
    config = mm1_config(parts, image_token=image_token, dtype=dtype)
    with whole_folder(output) as folder:
        for name in ("configuration_mm1.py", "modeling_mm1.py"):
            shutil.copyfile(HF_MODEL / name, folder / name)
        if tokenizer is not None:
            write_tokenizer(tokenizer, config, folder)
        if "vision_encoder" in parts:
            write_processor(parts, fit, tiling, folder)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        if model_card:
            (folder / "README.md").write_text(model_card)
        export_params(
            entries,
            stored.read,
            folder,
            dtype=DTYPES[EXPORT_DTYPES[dtype]],
            max_shard_bytes=max_shard_bytes,
            watch=watch,
        )
        num_parameters = sum(math.prod(entry.shape) for entry in entries)
        reason = why_not_compared(num_parameters, skip_comparison, comparison_bytes)
        comparison = None
        if reason is None:
            params = ParamsOf(stored, change=lambda x: rounded(x, dtype))
            comparison = compare.compare_mm1(parts, params, folder, image_token)
            raise_if_bad(comparison)
    return Exported(num_parameters, "mm1", comparison, reason)


def without_code(tokenizer: ExportedTokenizer, has_images: bool) -> ExportedTokenizer:
    """Returns the tokenizer without code of ours: sentencepiece becomes a Llama tokenizer.

    The Llama tokenizer drops a space at the beginning of a text.

    Args:
        has_images: Whether there are image tokens. Text after one, or after the stop of an answer,
            is tokenized like a text on its own, which transformers calls legacy.
    """
    files = dict(tokenizer.files)
    if files.pop(TOKENIZER_CODE, None) is not None:
        is_apart = has_images or CHAT_TEMPLATE in files
        config = json.loads(files["tokenizer_config.json"])
        kept = {k: v for k, v in config.items() if k.endswith("_token") and k != "image_token"}
        config = {**kept, "tokenizer_class": "LlamaTokenizer", "legacy": is_apart}
        config |= {"add_bos_token": True, "padding_side": "left"}
        files["tokenizer_config.json"] = json.dumps(config, indent=2).encode()
    return tokenizer._replace(files=files)


def write_tokenizer(tokenizer: ExportedTokenizer, config: dict[str, Any], folder: Path) -> None:
    """Writes a tokenizer beside a model; adds its ids to `config` and generation_config.json."""
    for name, content in tokenizer.files.items():
        (folder / name).write_bytes(content)
    ids = {
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.eos,
        "pad_token_id": tokenizer.pad,
    }
    config |= ids
    ends = [tokenizer.eos, *(i for i in tokenizer.stops if i != tokenizer.eos)]
    suppressed = sorted({*tokenizer.suppressed, tokenizer.pad} - {*ends})
    generation = {**ids, "suppress_tokens": suppressed}
    if len(ends) > 1:
        generation["eos_token_id"] = ends
    (folder / "generation_config.json").write_text(json.dumps(generation) + "\n")


def write_processor(
    parts: Mapping[str, Any], fit: str, tiling: Mapping[str, Any] | None, folder: Path
) -> None:
    """Writes the settings and the code of the processor of a whole model."""
    shutil.copyfile(HF_MODEL / "processing_mm1.py", folder / "processing_mm1.py")
    shutil.copyfile(HF_MODEL.parents[1] / "data" / "grids.py", folder / TILING_CODE)
    encoder = parts["vision_encoder"]
    image_processor = {
        "image_processor_type": "MM1ImageProcessor",
        "auto_map": {
            "AutoImageProcessor": "processing_mm1.MM1ImageProcessor",
            "AutoProcessor": "processing_mm1.MM1Processor",
        },
        "processor_class": "MM1Processor",
        "image_size": encoder.image_size,
        "fit": fit,
        "pixel_mean": list(encoder.pixel_mean),
        "pixel_std": list(encoder.pixel_std),
    }
    if tiling is not None:
        image_processor["tiling"] = dict(tiling)
    processor = {
        "processor_class": "MM1Processor",
        "auto_map": {"AutoProcessor": "processing_mm1.MM1Processor"},
        "num_image_tokens": parts["connector"].num_image_tokens,
        "image_token": IMAGE_MARK,
    }
    for name, content in (
        ("preprocessor_config.json", image_processor),
        ("processor_config.json", processor),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def _write_llava_processor(encoder: Any, folder: Path) -> None:
    """Writes settings with which transformers' LLaVA processor stretches images to squares."""
    side = encoder.image_size
    image_processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"height": side, "width": side},
        "do_center_crop": False,
        "resample": 3,  # Pillow's bicubic
        "image_mean": list(encoder.pixel_mean),
        "image_std": list(encoder.pixel_std),
    }
    has_class_token = encoder.class_token is not None
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": IMAGE_MARK,
        "patch_size": encoder.patch_size,
        "vision_feature_select_strategy": "default" if has_class_token else "full",
        "num_additional_image_tokens": int(has_class_token),
    }
    for name, content in (
        ("preprocessor_config.json", image_processor),
        ("processor_config.json", processor),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def rounded(value: np.ndarray, dtype: str) -> np.ndarray:
    """Returns the values that an export in `dtype` holds, as float32."""
    return value.astype(DTYPES[EXPORT_DTYPES[dtype]]).astype(np.float32)


def why_not_compared(
    num_parameters: int,
    skip_comparison: bool,
    max_bytes: int = compare.DEFAULT_BYTES,
    *,
    libraries: Sequence[str] = (),
) -> str | None:
    """Returns why outputs are not compared, or None if they are.

    Args:
        libraries: Libraries that the comparison needs besides torch and transformers.
    """
    if skip_comparison:
        return "it was not asked for"
    if missing := compare.missing_libraries(*libraries):
        return f"{' and '.join(missing)} not installed (pip install 'mm1_jax[hf]')"
    return compare.too_large(num_parameters, max_bytes)


def raise_if_bad(comparison: Comparison) -> None:
    if not comparison.is_good:
        raise ValueError(f"the export is wrong. {comparison}")


def _raise_if_present(output: Path) -> None:
    if output.exists():
        raise ValueError(f"{output}: already exists; choose a new folder")
