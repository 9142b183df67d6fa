"""Imports a foreign checkpoint as a folder of weights for runs, and checks the result."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mm1_jax.checkpoints.weights_folder import StoredParams, describe
from mm1_jax.host_memory import peak_bytes
from mm1_jax.interop import aim, clip, clip_tensors, compare, llama, vision
from mm1_jax.interop.compare import Comparison
from mm1_jax.interop.convert import (
    Watch,
    differences,
    import_params,
    same_bits,
    unequal_tensors,
)
from mm1_jax.interop.families import (
    Changes,
    complete_config,
    fields_of,
    has_unread_text,
    image_token,
    left_out,
    make_parts,
    make_table,
    num_rows,
    read_config,
    reference_config,
)
from mm1_jax.interop.mapping import Table, raise_if_misfit
from mm1_jax.interop.passthrough import Passthrough, keep_passthrough
from mm1_jax.interop.pickled import PickledTensors
from mm1_jax.interop.tensor_files import TensorFolder, Tensors
from mm1_jax.models.decoder import decoder_stack
from mm1_jax.storage import whole_folder
from mm1_jax.stored_config import flat_fields

FORMAT = 1


class Imported(NamedTuple):
    """Summary of an import and its checks.

    Attributes:
        num_passthrough: Number of tensors that have no place here and are kept beside the weights.
        comparison: Comparison with the source's implementation; None if there was none.
        not_compared: Why there was none.
        notes: Remarks for users.
        peaks: Phase -> peak memory of the process up to the end of the phase, in bytes.
    """

    num_parameters: int
    num_tensors: int
    num_passthrough: int
    comparison: Comparison | None
    not_compared: str | None
    notes: tuple[str, ...]
    peaks: Mapping[str, int]


def open_tensors(source: Path, *, allow_pickle: bool = False) -> Tensors:
    """Opens the tensors of a checkpoint.

    Args:
        allow_pickle: Also reads files of `torch.save`, with torch's weights-only loader.

    Raises:
        ValueError: There are no tensors, a file is damaged, or pickles are not allowed.
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
            f"{pickled[0]}: a pickle, which can run any code when loaded. Use safetensors, or "
            "allow it with --allow_pickle: torch then loads weights only"
        )
    return PickledTensors(pickled)


class Examined(NamedTuple):
    """A foreign checkpoint whose names and shapes fit; no values are read yet.

    Attributes:
        config: The complete config (see `complete_config`).
        changes: The changes of the conversion; `vision_only` if there is no text tower.
        notes: Remarks for users.
    """

    tensors: Tensors
    config: dict[str, Any]
    changes: Changes
    table: Table
    notes: list[str]


def examine(source: Path, changes: Changes, *, allow_pickle: bool = False) -> Examined:
    """Reads the config of a checkpoint and the headers of its files.

    Raises:
        ValueError: A file is damaged or missing, a field is unknown, or the tensors do not fit.
    """
    tensors = open_tensors(source, allow_pickle=allow_pickle)
    config = complete_config(read_config(source), tensors.specs)
    names = tensors.specs.keys()
    notes = []
    if has_unread_text(config, names) and not changes.vision_only:
        changes = replace(changes, vision_only=True, vocab_size=None)
        notes.append("there are no tensors of a text tower; the vision tower is imported alone")
    parts = make_parts(config, changes)
    table = make_table(parts, config, names)
    raise_if_misfit(table, tensors.specs, source, left_out(config, changes.vision_only))
    notes += table.notes
    if table.prefix:
        notes.append(f"the tensors' names begin with {table.prefix!r}, which was removed")
    return Examined(tensors, config, changes, table, notes)


def import_checkpoint(
    source: Path,
    output: Path,
    *,
    changes: Changes | None = None,
    allow_pickle: bool = False,
    skip_comparison: bool = False,
    comparison_bytes: int = compare.DEFAULT_BYTES,
    files: Mapping[str, bytes] | None = None,
    extra: Mapping[str, Any] | None = None,
    watch: Watch = lambda name, size: None,
) -> Imported:
    """Converts a checkpoint, reads all of it back, and compares outputs where possible.

    Args:
        output: A new folder.
        comparison_bytes: Memory limit of the comparison; a decoder that exceeds it is compared up
            to the last layer that fits.
        files: Name -> content of files to write beside the weights, such as a tokenizer.
        extra: Further entries of the description of the weights.

    Raises:
        ValueError: The tensors do not fit, do not read back as they were, or compute something
            else; then `output` does not exist.
    """
    if output.exists():
        raise ValueError(f"{output}: already exists; choose a new folder")
    tensors, config, changes, table, notes = examine(
        source, changes or Changes(), allow_pickle=allow_pickle
    )
    used = {entry.name for entry in table.entries}
    others = [name for name in tensors.specs if name not in used]
    peaks: dict[str, int] = {}
    description = {
        "format": FORMAT,
        "source": source.name,
        "config": config,
        "changes": asdict(changes),
        # `parts` is for people, and for code older than `fields`.
        "parts": {name: cfg.debug_string().splitlines() for name, cfg in table.parts.items()},
        "fields": {name: flat_fields(cfg) for name, cfg in table.parts.items()},
        "notes": notes,
        "tensors": {name: spec.dtype.name for name, spec in tensors.specs.items()},
        **(extra or {}),
    }
    with whole_folder(output) as folder:
        raise_if_copies_differ(table, tensors, source)
        import_params(table, tensors, folder, where=source, watch=watch)
        keep_passthrough(tensors, others, source if source.is_dir() else source.parent, folder)
        for name, content in (files or {}).items():
            (folder / name).write_bytes(content)
        describe(folder, description)
        peaks["written"] = peak_bytes()
        stored = StoredParams(folder)
        wrong = differences(table.entries, tensors, stored.read)
        if wrong := [*wrong, *unequal_tensors(others, tensors, Passthrough(folder))]:
            raise ValueError(f"{source}: {', '.join(wrong)} read back changed; is the disk full?")
        peaks["read back"] = peak_bytes()
        comparison, reason = None, "it was not asked for"
        if not skip_comparison:
            comparison, reason = compare_with_source(
                table, stored, config, tensors, comparison_bytes
            )
        peaks["compared"] = peak_bytes()
        if comparison is not None and not comparison.is_good:
            raise ValueError(f"{source}: the conversion is wrong. {comparison}")
        checks = "every tensor read back bit for bit; "
        checks += str(comparison) if comparison else f"logits were not compared: {reason}"
        describe(folder, {**description, "checks": checks})
    shapes = table.shapes()
    return Imported(
        num_parameters=sum(map(math.prod, shapes.values())),
        num_tensors=len(table.entries),
        num_passthrough=len(others),
        comparison=comparison,
        not_compared=reason,
        notes=tuple(notes),
        peaks=peaks,
    )


def compare_with_source(
    table: Table, stored: StoredParams, config: Mapping[str, Any], tensors: Tensors, max_bytes: int
) -> tuple[Comparison | None, str | None]:
    """Compares outputs of a foreign checkpoint and of ours; or returns None and the reason.

    Args:
        config: The complete config of the source.
        tensors: Tensors of the source.
        max_bytes: Memory limit for both models.
    """
    try:
        result = _not_comparable(config, table) or _compare(
            table, stored, config, tensors, max_bytes
        )
    except compare.NotComparable as error:
        result = str(error)
    return (None, result) if isinstance(result, str) else (result, None)


def _not_comparable(config: Mapping[str, Any], table: Table) -> str | None:
    if missing := compare.missing_libraries():
        return f"{' and '.join(missing)} not installed (pip install 'mm1_jax[hf]')"
    names = [entry.name for entry in table.entries]
    if config["model_type"] == "open_clip" or aim.PATCH_KERNEL in names:
        return "transformers has no implementation that reads this source"
    return None


def _compare(
    table: Table, stored: StoredParams, config: Mapping[str, Any], tensors: Tensors, max_bytes: int
) -> Comparison | str:
    """Returns the comparison, or why there is none."""
    parts: Mapping[str, Any] = table.parts
    num_parameters = sum(map(math.prod, table.shapes().values()))
    reason = compare.too_large(num_parameters, max_bytes)
    if vision.ENCODER in parts and reason is not None:
        return reason
    theirs = compare.StateModel(
        *reference_config(config, vision_only=clip_tensors.TEXT not in parts),
        tensors,
        prefix=table.prefix,
        used={entry.name for entry in table.entries},
    )
    if "decoder" in parts and vision.ENCODER in parts:
        token, rows = image_token(config), num_rows(config)
        assert token is not None
        return compare.compare_llava(
            parts, ParamsOf(stored), theirs, num_rows=rows, image_token=token
        )
    if clip_tensors.TEXT in parts:
        model = clip.clip_of_parts(parts, has_bias=clip_tensors.BIAS in table.scalars)
        return compare.compare_clip(model, ParamsOf(stored), theirs)
    if vision.ENCODER in parts:
        encoder = parts[vision.ENCODER]
        return compare.compare_tower(encoder, ParamsOf(stored, vision.ENCODER), theirs)
    decoder = parts["decoder"]
    num_layers = decoder.num_layers
    if reason is not None and not (num_layers := _layers_that_fit(table, decoder, max_bytes)):
        return reason
    num_groups = num_layers // decoder_stack(decoder).group_size
    params = ParamsOf(stored, "decoder", num_groups=num_groups)
    shallow = decoder.clone(num_layers=num_layers)
    window = llama.attention_window(fields_of(config))
    return compare.compare_decoder(shallow, params, theirs, num_rows(config), window)


def raise_if_copies_differ(table: Table, tensors: Tensors, where: Any) -> None:
    """Raises ValueError if two tensors differ that the config ties."""
    for name, other in table.copies.items():
        if not same_bits(tensors.read(other), tensors.read(name)):
            raise ValueError(
                f"{where}: {name} and {other} differ, but its config has tie_word_embeddings=true; "
                "set it to false"
            )


class ParamsOf(Mapping[str, np.ndarray]):
    """Parameters of a part by path within it, each read on access and not cached."""

    def __init__(
        self,
        stored: StoredParams,
        part: str = "",
        *,
        num_groups: int | None = None,
        change: Callable[[np.ndarray], np.ndarray] = lambda x: x,
    ):
        """Stores the arguments; reads no parameter yet.

        Args:
            part: Name of the part; empty for all parameters, by full paths.
            num_groups: Limits the layers of a stack to this many groups from the first.
            change: Function applied to each parameter that is read.
        """
        self._stored, self._prefix = stored, f"{part}/" if part else ""
        self._num_groups, self._change = num_groups, change

    def __getitem__(self, path: str) -> np.ndarray:
        is_cut = self._num_groups is not None and path.startswith("stack/")
        index = (slice(0, self._num_groups),) if is_cut else ()
        return self._change(self._stored.read(self._prefix + path, index))

    def __iter__(self) -> Iterator[str]:
        for path in self._stored.shapes:
            if path.startswith(self._prefix):
                yield path.removeprefix(self._prefix)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _layers_that_fit(table: Table, decoder: Any, max_bytes: int) -> int:
    """Returns how many of the first layers fit into memory for a comparison."""
    group_size = decoder_stack(decoder).group_size
    shapes = table.shapes()
    layers = sum(math.prod(s) for p, s in shapes.items() if p.startswith("decoder/stack/"))
    rest = sum(map(math.prod, shapes.values())) - layers
    groups = decoder.num_layers // group_size
    while groups:
        num_parameters = rest + groups * group_size * layers // decoder.num_layers
        if compare.too_large(num_parameters, max_bytes) is None:
            break
        groups -= 1
    return groups * group_size
