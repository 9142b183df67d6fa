"""Exports adapters in the format of PEFT, which torch loads onto the exported base model.

A folder has `adapter_config.json` and `adapter_model.safetensors`. It holds everything that was
trained: A and B of the adapted layers, and whole modules under `modules_to_save`, such as the
connector. Names are those of the modules of the exported base model. `peft_import.py` reads it.
"""

import functools
import json
import math
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mm1_jax.checkpoints.weights_folder import StoredParams
from mm1_jax.interop import compare
from mm1_jax.interop.adapters import AdaptedLayer, AdaptedModel, BaseParams, MergedParams
from mm1_jax.interop.compare import Comparison
from mm1_jax.interop.exporter import (
    Exported,
    compare_native,
    export_mm1,
    export_native,
    raise_if_bad,
    why_not_compared,
)
from mm1_jax.interop.importer import ParamsOf
from mm1_jax.interop.llava import torch_name
from mm1_jax.interop.mapping import Entry, Piece
from mm1_jax.interop.mm1 import mm1_entries
from mm1_jax.interop.native import NativeModel
from mm1_jax.interop.tensor_files import TensorSpec, TensorWriter
from mm1_jax.layers.lora import NAME
from mm1_jax.storage import whole_folder

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_FLOAT32 = np.dtype(np.float32)


class AdaptedModule(NamedTuple):
    """An adapted module of the exported base model, and the layer of ours that it comes from.

    Attributes:
        name: Name in torch, such as "model.layers.3.self_attn.q_proj".
        path: Path of our layer, or of the stack that contains it.
        index: Index in that stack.
        shapes: Shapes of lora_A and lora_B in torch.
    """

    name: str
    path: str
    index: tuple[int, ...]
    layer: AdaptedLayer
    shapes: tuple[tuple[int, int], tuple[int, int]]


def export_adapters(
    checkpoint: Path,
    step: int | None,
    model: AdaptedModel,
    parts: Mapping[str, Any],
    output: Path,
    *,
    native: NativeModel | None,
    image_token: int,
    base: str = "",
    skip_comparison: bool = False,
    comparison_bytes: int = compare.DEFAULT_BYTES,
) -> Exported:
    """Writes the adapters of a run, and all else that it trained, as a PEFT folder in float32.

    The outputs of the base model with these adapters, run by torch, are compared with ours.

    Args:
        parts: Parts of the model, from `mm1.model_parts`.
        native: The model of transformers that the base is exported as; None is our own.
        base: Path or name of the exported base model, which PEFT's `AutoPeftModel` loads.

    Raises:
        ValueError: An adapted layer is no linear module of the base model, or the adapters compute
            something else; then `output` does not exist.
    """
    if output.exists():
        raise ValueError(f"{output}: already exists; choose a new folder")
    stored = StoredParams(checkpoint, step)
    entries, names = named_entries(parts, native)
    modules = list(_modules(model.layers, entries, names))
    saved = _saved_modules(model, entries, names, {module.name for module in modules})
    specs: dict[str, TensorSpec] = {}
    reads: dict[str, Callable[[], np.ndarray]] = {}
    for module in modules:
        for letter, shape in zip("AB", module.shapes, strict=True):
            name = f"{PREFIX}{module.name}.lora_{letter}.weight"
            specs[name] = TensorSpec(shape, _FLOAT32)
            reads[name] = functools.partial(_factor, stored, module, letter)
    for entry in entries:
        if _is_inside(names[entry.name], saved):
            name = PREFIX + names[entry.name]
            specs[name] = TensorSpec(entry.shape, _FLOAT32)
            reads[name] = functools.partial(_tensor, stored, entry)
    config = _config(modules, saved, list(names.values()), model.is_rank_stabilized)
    config["base_model_name_or_path"] = base
    # A causal language model of PEFT has no arguments for images.
    config["task_type"] = "CAUSAL_LM" if len(parts) == 1 else None
    num_base = sum(math.prod(entry.shape) for entry in entries)
    reason = why_not_compared(num_base, skip_comparison, comparison_bytes, libraries=["peft"])
    comparison = None
    with whole_folder(output) as folder:
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        writer = TensorWriter(folder, specs, max_shard_bytes=sys.maxsize)
        writer.write(lambda name: reads[name]().astype(_FLOAT32))
        (folder / "model.safetensors").rename(folder / TENSORS)
        if reason is None:
            base_params = BaseParams(checkpoint, step)
            merged = MergedParams(checkpoint, step, model.layers)
            comparison = _compare(base_params, merged, parts, native, image_token, folder)
            raise_if_bad(comparison)
    num_parameters = sum(math.prod(spec.shape) for spec in specs.values())
    return Exported(num_parameters, "PEFT adapter", comparison, reason)


def named_entries(
    parts: Mapping[str, Any], native: NativeModel | None
) -> tuple[Sequence[Entry], dict[str, str]]:
    """Returns the tensors of an exported model, and tensor name -> name in torch."""
    entries = mm1_entries(parts) if native is None else native.entries
    is_llava = native is not None and len(parts) > 1
    return entries, {x.name: torch_name(x.name) if is_llava else x.name for x in entries}


def _compare(
    base_params: BaseParams,
    merged: MergedParams,
    parts: Mapping[str, Any],
    native: NativeModel | None,
    image_token: int,
    adapters: Path,
) -> Comparison:
    """Compares our merged model with torch's base model and its adapters."""
    with tempfile.TemporaryDirectory(dir=adapters.parent) as temporary:
        base = Path(temporary, "base")
        if native is None:
            export_mm1(base_params, parts, base, image_token=image_token, skip_comparison=True)
            return compare.compare_mm1(parts, ParamsOf(merged), base, image_token, adapters)
        export_native(base_params, native, parts, base, skip_comparison=True)
        return compare_native(merged, native, parts, compare.FolderModel(base, adapters))


def _modules(
    layers: Mapping[str, AdaptedLayer],
    entries: Iterable[Entry],
    names: Mapping[str, str],
) -> Iterator[AdaptedModule]:
    """Yields the adapted modules in the order of the base model's tensors.

    Raises:
        ValueError: The tensor of a layer is joined with others, or is none of a `torch.nn.Linear`.
    """
    found = set()
    for entry in entries:
        for piece in entry.pieces:
            path, _, name = piece.parameter.rpartition("/")
            if name != "kernel" or path not in layers:
                continue
            found.add(path)
            if len(entry.pieces) > 1 or not is_linear(piece, layers[path]):
                raise ValueError(
                    f"{path} has an adapter, but {entry.name} is no linear layer of its own in "
                    "the exported model; export merged weights, or --format=mm1"
                )
            module = names[entry.name].removesuffix(".weight")
            (num_outputs, num_inputs), rank = entry.shape, layers[path].rank
            shapes = ((rank, num_inputs), (num_outputs, rank))
            yield AdaptedModule(module, path, piece.index, layers[path], shapes)
    if lost := sorted(layers.keys() - found):
        raise ValueError(f"{lost[0]} has an adapter, but the exported model has no such layer")


def is_linear(piece: Piece, layer: AdaptedLayer) -> bool:
    """Returns whether a tensor is [outputs, inputs] with the dims in the order of our kernel."""
    ours, theirs = sum(piece.layout.ours, ()), piece.layout.theirs
    inputs = tuple(ours[dim] for dim in layer.input_dims)
    outputs = tuple(name for name in ours if name not in inputs)
    return theirs == (outputs, inputs)


def _factor(stored: StoredParams, module: AdaptedModule, letter: str) -> np.ndarray:
    """Returns lora_A, [rank, inputs], or lora_B, [outputs, rank]."""
    value = stored.read(f"{module.path}/{NAME}/{letter.lower()}", module.index)
    rank = module.layer.rank
    return value.reshape((-1, rank) if letter == "A" else (rank, -1)).T


def _tensor(stored: StoredParams, entry: Entry) -> np.ndarray:
    value = np.full(entry.shape, entry.fill, np.float32)
    for piece in entry.pieces:
        ours = stored.read(piece.parameter, piece.index)
        ours = ours[piece.place : piece.place + piece.layout.our_shape[0]]
        value[piece.rows] = piece.layout.to_theirs(ours)
    return value


def _saved_modules(
    model: AdaptedModel, entries: Sequence[Entry], names: Mapping[str, str], adapted: set[str]
) -> list[str]:
    """Returns the outermost modules of which every parameter is trained."""
    trained, kept = [], []
    for entry in (entry for entry in entries if entry.pieces):
        is_trained = any(piece.parameter in model.trained for piece in entry.pieces)
        (trained if is_trained else kept).append(names[entry.name])
    modules = []
    for name in trained:
        parts = name.split(".")[:-1]
        # A module is saved whole, so the innermost may have frozen parameters as well.
        for depth in range(1, len(parts) + 1):
            module = ".".join(parts[:depth])
            if depth == len(parts) or not any(_is_inside(x, [module]) for x in kept):
                break
        if not parts or module in adapted or any(_is_inside(x, [module]) for x in adapted):
            raise ValueError(
                f"{name} is trained as a whole inside a module with an adapter, which PEFT cannot "
                "hold; export merged weights"
            )
        modules.append(module)
    return list(dict.fromkeys(modules))


def _is_inside(name: str, modules: Collection[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _config(
    modules: Sequence[AdaptedModule],
    saved: Sequence[str],
    all_names: Sequence[str],
    is_rank_stabilized: bool,
) -> dict[str, Any]:
    def alpha(layer: AdaptedLayer) -> int | float:
        value = layer.scale * (math.sqrt(layer.rank) if is_rank_stabilized else layer.rank)
        return int(round(value)) if math.isclose(value, round(value)) else value

    ranks = {module.name: module.layer.rank for module in modules}
    alphas = {module.name: alpha(module.layer) for module in modules}
    rank, usual_alpha = (Counter(x.values()).most_common(1)[0][0] for x in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": usual_alpha,
        "target_modules": _targets(list(ranks), all_names),
        "rank_pattern": _pattern(ranks, rank, all_names),
        "alpha_pattern": _pattern(alphas, usual_alpha, all_names),
        "use_rslora": is_rank_stabilized,
        "modules_to_save": list(saved) or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _targets(names: Sequence[str], all_names: Sequence[str]) -> list[str] | str:
    """Returns the last parts of the names if they suffice, as is usual, or else a pattern."""
    ends = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    others = {name.rpartition(".")[0] for name in all_names} - set(names)
    if not any(name.rpartition(".")[2] in ends for name in others):
        return ends
    return "|".join(_patterns(names, all_names))


def _pattern(values: Mapping[str, Any], usual: Any, all_names: Sequence[str]) -> dict[str, Any]:
    result = {}
    for value in dict.fromkeys(values.values()):
        if value != usual:
            own = [name for name, other in values.items() if other == value]
            result |= dict.fromkeys(_patterns(own, all_names), value)
    return result


def _patterns(names: Sequence[str], all_names: Sequence[str]) -> list[str]:
    """Returns regular expressions that match these modules, with layers of a stack in one."""

    def split(name: str) -> tuple[str, str | None]:
        found = re.search(r"(?<=layers\.)\d+(?=\.)", name)
        if found is None:
            return name, None
        return f"{name[: found.start()]}#{name[found.end() :]}", found[0]

    layers: dict[str, list[str | None]] = {}
    everywhere: dict[str, set[str | None]] = {}
    for name in names:
        stem, number = split(name)
        layers.setdefault(stem, []).append(number)
    for name in all_names:
        stem, number = split(name.rpartition(".")[0])
        everywhere.setdefault(stem, set()).add(number)
    result = []
    for stem, numbers in layers.items():
        is_whole = set(numbers) == everywhere[stem]
        number = r"\d+" if is_whole else f"(?:{'|'.join(map(str, numbers))})"
        result.append(re.escape(stem).replace(r"\#", number))
    return result
