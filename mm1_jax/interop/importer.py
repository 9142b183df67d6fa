"""A foreign checkpoint -> a folder of weights that runs start from, checked before it counts."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mm1_jax.files import whole_folder
from mm1_jax.interop import compare, vision
from mm1_jax.interop.compare import Comparison
from mm1_jax.interop.convert import Watch, differences, import_params
from mm1_jax.interop.families import (
    Changes,
    complete_config,
    make_parts,
    make_table,
    read_config,
)
from mm1_jax.interop.mapping import Table
from mm1_jax.interop.pickled import PickledTensors
from mm1_jax.interop.tensor_files import TensorFolder, Tensors
from mm1_jax.models.decoder import decoder_stack
from mm1_jax.weights_folder import StoredParams, describe

FORMAT = 1


class Imported(NamedTuple):
    """What was converted, and how it was checked.

    Attributes:
        comparison: With the source's implementation; None where there was none.
        not_compared: Why.
        notes: What users should know.
    """

    num_parameters: int
    num_tensors: int
    comparison: Comparison | None
    not_compared: str | None
    notes: tuple[str, ...]


def open_tensors(source: Path, *, allow_pickle: bool = False) -> Tensors:
    """The tensors of a checkpoint.

    Args:
        allow_pickle: Read files of `torch.save` too, with torch's loader for weights only.

    Raises:
        ValueError: There are none, a file is damaged, or they are pickled and that is not allowed.
    """
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    pickled = [source] if source.is_file() else sorted(source.glob("*.bin"))
    pickled = [path for path in pickled if path.suffix in (".bin", ".pt", ".pth")]
    is_safe = source.suffix == ".safetensors" or any(source.glob("*.safetensors"))
    if is_safe or not pickled:
        return TensorFolder(source)
    if not allow_pickle:
        raise ValueError(
            f"{pickled[0]}: a pickle, which can run any program as it is read. Fetch safetensors, "
            "or allow it with --allow_pickle: torch then reads weights only"
        )
    return PickledTensors(pickled)


def import_checkpoint(
    source: Path,
    output: Path,
    *,
    changes: Changes | None = None,
    allow_pickle: bool = False,
    skip_comparison: bool = False,
    files: Mapping[str, bytes] | None = None,
    extra: Mapping[str, Any] | None = None,
    watch: Watch = lambda name, size: None,
) -> Imported:
    """Converts a checkpoint, reads all of it back, and compares outputs where that can be done.

    Args:
        output: A new folder.
        files: Name -> content of what lies beside the weights: a tokenizer.
        extra: Entries of the description of the weights.

    Raises:
        ValueError: Something does not fit, does not come back as it was, or computes something
            else; then `output` is not there.
    """
    if output.exists():
        raise ValueError(f"{output}: is there already; choose a new folder")
    changes = changes or Changes()
    tensors = open_tensors(source, allow_pickle=allow_pickle)
    config = complete_config(read_config(source), tensors.specs)
    parts = make_parts(config, changes)
    table = make_table(parts, config, tensors.specs.keys())
    description = {
        "format": FORMAT,
        "source": source.name,
        "config": config,
        "changes": asdict(changes),
        "parts": {name: cfg.debug_string().splitlines() for name, cfg in table.parts.items()},
        "notes": list(table.notes),
        **(extra or {}),
    }
    with whole_folder(output) as folder:
        import_params(table, tensors, folder, where=source, watch=watch)
        for name, content in (files or {}).items():
            (folder / name).write_bytes(content)
        describe(folder, description)
        stored = StoredParams(folder)
        if wrong := differences(table.entries, tensors, stored.read):
            raise ValueError(f"{source}: {', '.join(wrong)} came back changed; is the disk full?")
        reason = "it was not asked for" if skip_comparison else _not_comparable(config, source)
        comparison = None if reason else _compare(table, stored, config, source)
        if isinstance(comparison, str):
            comparison, reason = None, comparison
        if comparison is not None and not comparison.is_good:
            raise ValueError(f"{source}: the conversion is wrong. {comparison}")
        checks = "every tensor read back bit for bit; "
        checks += str(comparison) if comparison else f"logits were not compared: {reason}"
        describe(folder, {**description, "checks": checks})
    shapes = table.shapes()
    return Imported(
        num_parameters=sum(map(math.prod, shapes.values())),
        num_tensors=len(table.entries),
        comparison=comparison,
        not_compared=reason,
        notes=tuple(table.notes),
    )


def _not_comparable(config: Mapping[str, Any], source: Path) -> str | None:
    if missing := compare.missing_libraries():
        return f"{' and '.join(missing)} not installed (pip install 'mm1_jax[hf]')"
    if config["model_type"] in ("open_clip", "aim") or not source.is_dir():
        return "transformers has no implementation that reads this source"
    return None


def _compare(
    table: Table, stored: StoredParams, config: Mapping[str, Any], source: Path
) -> Comparison | str:
    """The comparison, or why there is none."""
    parts: Mapping[str, Any] = table.parts
    if "decoder" in parts and vision.ENCODER in parts:
        if (reason := compare.too_large(sum(map(math.prod, table.shapes().values())))) is not None:
            return reason
        params = {path: stored.read(path) for path in stored.shapes}
        return compare.compare_llava(parts, params, source, config)
    if vision.ENCODER in parts:
        encoder = parts[vision.ENCODER]
        return compare.compare_tower(encoder, _params(stored, vision.ENCODER), source)
    decoder = parts["decoder"]
    num_layers = _layers_that_fit(table, decoder)
    if not num_layers:
        return compare.too_large(sum(map(math.prod, table.shapes().values()))) or "no layer fits"
    group_size = decoder_stack(decoder).group_size
    params = {
        path: stored.read(f"decoder/{path}", (slice(0, num_layers // group_size),))
        if path.startswith("stack/")
        else stored.read(f"decoder/{path}")
        for path in _below(stored, "decoder")
    }
    shallow = decoder.clone(num_layers=num_layers)
    return compare.compare_decoder(shallow, params, source, config["vocab_size"])


def _params(stored: StoredParams, part: str) -> dict[str, np.ndarray]:
    return {path: stored.read(f"{part}/{path}") for path in _below(stored, part)}


def _below(stored: StoredParams, part: str) -> list[str]:
    return [p.removeprefix(f"{part}/") for p in stored.shapes if p.startswith(f"{part}/")]


def _layers_that_fit(table: Table, decoder: Any) -> int:
    """How many of the first layers can be compared: all, if memory allows."""
    group_size = decoder_stack(decoder).group_size
    shapes = table.shapes()
    layers = sum(math.prod(s) for p, s in shapes.items() if p.startswith("decoder/stack/"))
    rest = sum(map(math.prod, shapes.values())) - layers
    groups = decoder.num_layers // group_size
    while groups and compare.too_large(rest + groups * group_size * layers // decoder.num_layers):
        groups -= 1
    return groups * group_size
