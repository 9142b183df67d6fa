"""Imports adapters in the format of PEFT as a folder of weights, from which runs can start.

The folder holds only the adapters and what was trained beside them; `trainer.initial_adapters`
loads it on top of the base model.
"""

import contextlib
import math
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mm1_jax.checkpoints.weights_folder import ADAPTER_SCALES, StoredParams, WeightsWriter, describe
from mm1_jax.interop.adapters import AdaptedLayer, adapted_model
from mm1_jax.interop.mapping import Entry
from mm1_jax.interop.native import NativeModel, native_llava, native_model
from mm1_jax.interop.peft import CONFIG, PREFIX, TENSORS, is_linear, named_entries
from mm1_jax.interop.tensor_files import TensorFile
from mm1_jax.layers.lora import NAME, is_adapter
from mm1_jax.models.mm1 import MM1
from mm1_jax.storage import read_json_object, whole_folder

_MAX_NAMED = 4


class ImportedAdapters(NamedTuple):
    """Summary of adapters that were read from a PEFT folder.

    Attributes:
        layers: Adapted layers by our path, with rank and alpha.
        trained: Outermost parts and parameters that were trained as a whole.
    """

    layers: dict[str, tuple[int, float]]
    trained: list[str]
    is_rank_stabilized: bool
    num_parameters: int


def import_adapters(
    source: Path, output: Path, *, base: StoredParams, parts: Mapping[str, Any]
) -> ImportedAdapters:
    """Writes a folder of weights with the adapters of a PEFT folder, under our paths.

    Args:
        base: Parameters of the model that was exported for PEFT.
        parts: Its parts, a decoder among them.

    Raises:
        ValueError: The folder has methods other than plain LoRA, modules that the base lacks, or
            layers of one stack that differ in rank.
    """
    if output.exists():
        raise ValueError(f"{output}: already exists; choose a new folder")
    config, tensors = _read_config(source), TensorFile(source / TENSORS)
    matrices: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for key in tensors.specs:
        name = key.removeprefix(PREFIX)
        found = re.fullmatch(r"(.+)\.lora_([AB])(?:\.default)?\.weight", name)
        if found:
            matrices.setdefault(found[1], {})[found[2]] = key
        else:
            whole[re.sub(r"\.modules_to_save(\.default)?(?=\.)", "", name)] = key
    entries = _fitting_export(source, parts, {*(f"{x}.weight" for x in matrices), *whole})
    # The base may be a run with adapters of its own.
    base_shapes = {path: x for path, x in base.shapes.items() if not is_adapter(path)}
    input_dims = _input_dims(parts)
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    values: dict[str, dict[tuple[int, ...], np.ndarray]] = {}
    for module, keys in matrices.items():
        entry = entries[f"{module}.weight"]
        piece = entry.pieces[0]
        path = piece.parameter.rpartition("/")[0]
        if len(keys) < 2:
            raise ValueError(f"{source}: {module} has only one of lora_A and lora_B")
        rank = tensors.specs[keys["A"]].shape[0]
        layer = AdaptedLayer(1.0, rank, input_dims.get(path, ()), len(piece.index))
        if path not in input_dims or len(entry.pieces) > 1 or not is_linear(piece, layer):
            raise ValueError(f"{source}: {module} is no linear layer of its own here")
        alpha = float(_by_pattern(config, "alpha_pattern", module, config.get("lora_alpha", 8)))
        if (ranks.setdefault(path, rank), alphas.setdefault(path, alpha)) != (rank, alpha):
            raise ValueError(
                f"{source}: {module} has rank {rank} and alpha {alpha:g}, and other layers of "
                f"{path} have rank {ranks[path]} and alpha {alphas[path]:g}; layers of a stack "
                "must have the same"
            )
        own = dict(zip(sum(piece.layout.ours, ()), piece.layout.our_shape, strict=True))
        outputs, inputs = ([own[name] for name in side] for side in piece.layout.theirs)
        a, b = (tensors.read(keys[x]).T for x in "AB")
        if a.shape != (math.prod(inputs), rank) or b.shape != (rank, math.prod(outputs)):
            raise ValueError(
                f"{source}: the matrices of {module} are {list(a.T.shape)} and {list(b.T.shape)}, "
                f"expected [rank, {math.prod(inputs)}] and [{math.prod(outputs)}, rank]"
            )
        values.setdefault(f"{path}/{NAME}/a", {})[piece.index] = a.reshape(*inputs, rank)
        values.setdefault(f"{path}/{NAME}/b", {})[piece.index] = b.reshape(rank, *outputs)
    for name, key in whole.items():
        value = tensors.read(key)
        for piece in entries[name].pieces:
            ours = piece.layout.to_ours(value[piece.rows])
            if ours.shape != base_shapes[piece.parameter][len(piece.index) :]:
                raise ValueError(
                    f"{source}: {name} is {list(value.shape)}, and {piece.parameter} of the base "
                    f"is {list(base_shapes[piece.parameter])}"
                )
            values.setdefault(piece.parameter, {})[piece.index] = ours
    shapes = {path: _whole_shape(source, path, x, base_shapes) for path, x in values.items()}
    is_rank_stabilized = bool(config.get("use_rslora"))
    scales = {
        path: alphas[path] / (math.sqrt(rank) if is_rank_stabilized else rank)
        for path, rank in ranks.items()
    }
    with whole_folder(output) as folder:
        leading = {path: len(next(iter(x))) for path, x in values.items()}
        dtypes = dict.fromkeys(shapes, np.dtype(np.float32))
        writer = WeightsWriter(folder, shapes, dtypes, leading)
        for path, slices in values.items():
            for index, value in slices.items():
                writer.write(path, index, value.astype(np.float32))
        describe(folder, {"parts": {}, ADAPTER_SCALES: scales, "source": source.name})
    return ImportedAdapters(
        {path: (ranks[path], alphas[path]) for path in ranks},
        _outermost(values.keys() & base_shapes.keys(), base_shapes),
        is_rank_stabilized,
        sum(math.prod(shape) for shape in shapes.values()),
    )


def _read_config(source: Path) -> dict[str, Any]:
    for name in (CONFIG, TENSORS):
        if not (source / name).is_file():
            raise ValueError(f"{source}: has no {name}; expected a folder saved by PEFT")
    config = read_json_object(source / CONFIG)
    for field, expected in (("peft_type", "LORA"), ("bias", "none")):
        if config.get(field, expected) != expected:
            raise ValueError(f"{source / CONFIG}: {field}={config[field]!r}: expected {expected!r}")
    for field in ("use_dora", "fan_in_fan_out", "target_parameters", "trainable_token_indices"):
        if config.get(field):
            raise ValueError(f"{source / CONFIG}: {field}={config[field]!r} is not supported")
    return config


def _outermost(paths: Collection[str], all_paths: Collection[str]) -> list[str]:
    """Returns the outermost parts of which all parameters are among `paths`."""
    result = {}
    for path in sorted(paths):
        names = path.split("/")
        prefixes = ("/".join(names[:depth]) for depth in range(1, len(names) + 1))
        for prefix in prefixes:
            inside = {x for x in all_paths if x == prefix or x.startswith(f"{prefix}/")}
            if inside <= set(paths):
                result[prefix] = None
                break
    return list(result)


def _input_dims(parts: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    no_images = {"vision_encoder": None, "connector": None}
    model = MM1.default_config().set(**{**no_images, **parts}, image_token=0)
    return adapted_model(model).input_dims


def _fitting_export(
    source: Path, parts: Mapping[str, Any], names: Collection[str]
) -> dict[str, Entry]:
    """Returns the tensors by name in torch of the first export of the base that has all names."""
    if "decoder" not in parts:
        raise ValueError(f"--base has only {' and '.join(parts)}; expected a model with a decoder")
    lost: list[list[str]] = []
    for native in _natives(parts):
        entries, torch_names = named_entries(parts, native)
        found = {torch_names[entry.name]: entry for entry in entries}
        lost.append(sorted(names - found.keys()))
        if not lost[-1]:
            return found
    fewest = min(lost, key=len)
    more = f" and {len(fewest) - _MAX_NAMED} more" if len(fewest) > _MAX_NAMED else ""
    raise ValueError(
        f"{source}: --base has no {', '.join(fewest[:_MAX_NAMED])}{more}; expected the adapters of "
        "an export of this base"
    )


def _natives(parts: Mapping[str, Any]) -> Iterator[NativeModel | None]:
    """Yields the models that the parts can be exported as; None is our own."""
    yield None
    if len(parts) == 1:
        model = native_model(parts)
        if not isinstance(model, str):
            yield model
    else:
        # The token of images changes no names.
        with contextlib.suppress(ValueError):
            yield native_llava(parts, image_token=0)


def _by_pattern(config: Mapping[str, Any], field: str, name: str, default: Any) -> Any:
    """Looks a module up as PEFT does: the first pattern that matches the end of its name."""
    for pattern, value in (config.get(field) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _whole_shape(
    source: Path,
    path: str,
    slices: Mapping[tuple[int, ...], np.ndarray],
    base_shapes: Mapping[str, tuple[int, ...]],
) -> tuple[int, ...]:
    """Returns the shape of a stacked parameter; raises ValueError if a layer is missing."""
    kernel = base_shapes[re.sub(rf"/{NAME}/[ab]$", "/kernel", path)]
    stacked = kernel[: len(next(iter(slices)))]
    if len(slices) < math.prod(stacked):
        layer = path.removesuffix("/a").removesuffix("/b").removesuffix(f"/{NAME}")
        raise ValueError(
            f"{source}: has {len(slices)} of the {math.prod(stacked)} layers of {layer}; layers of "
            "a stack are adapted or trained together here"
        )
    return (*stacked, *next(iter(slices.values())).shape)
