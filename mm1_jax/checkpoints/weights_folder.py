"""Array-wise access to parameters on disk, in a weight folder or in a checkpoint of a run.

`python -m mm1_jax convert_checkpoint` creates weight folders, from which runs can start:

    weights.json   description: contents, origin, and the checks that were made
    params/        Orbax checkpoint of the parameters, under their paths in an `MM1`

Orbax can only write whole arrays, and ours are stacks of all layers. Here, Orbax writes only the
structure, and TensorStore writes the values slice by slice, so that memory does not grow with the
depth of the model.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from absl import logging

from mm1_jax.checkpoints.checkpoint_folder import checkpoints_of
from mm1_jax.stored_config import Scalar, read_fields

DESCRIPTION = "weights.json"
PARAMS = "params"
# Entry of the description of adapters: the scale of each update by the path of the adapted layer.
ADAPTER_SCALES = "adapter_scales"
# Maximum size of the files that an array is divided into.
_CHUNK_BYTES = 32 * 2**20
_MAX_NAMED = 8


class WeightsWriter:
    """Writes the parameters of a weight folder slice by slice."""

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, tuple[int, ...]],
        dtypes: Mapping[str, np.dtype],
        num_leading: Mapping[str, int],
    ):
        """Creates the structure, with all values zero.

        Args:
            shapes: Shape of every parameter by path.
            dtypes: Dtype of every parameter by path.
            num_leading: Number of leading dims that are indexed, and thus missing in a slice, by
                path; defaults to 0.
        """
        self._folder = folder / PARAMS
        skeleton: dict[str, Any] = {}
        for path in shapes:
            *parents, name = path.split("/")
            node = skeleton
            for parent in parents:
                node = node.setdefault(parent, {})
            node[name] = np.zeros((1,), np.int8)
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False)
        with _without_warnings(), ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(self._folder.absolute(), skeleton)
        self._arrays = {
            path: self._create(path, shape, np.dtype(dtypes[path]), num_leading.get(path, 0))
            for path, shape in shapes.items()
        }

    def write(self, path: str, index: tuple[int, ...], value: np.ndarray, start: int = 0) -> None:
        """Writes rows, starting at row `start`, of the slice at `index` of the leading dims."""
        array = self._arrays[path]
        slice_shape = array.shape[len(index) :]
        assert value.ndim == len(slice_shape) and value.shape[1:] == slice_shape[1:], path
        if value.ndim == 0:
            array[index].write(value).result()
            return
        step = array.chunk_layout.write_chunk.shape[len(index)]
        row = start
        while row < start + len(value):
            # Write up to the next file boundary.
            end = min((row // step + 1) * step, start + len(value))
            block = value[row - start : end - start].astype(array.dtype.numpy_dtype)
            array[(*index, slice(row, end))].write(np.ascontiguousarray(block)).result()
            row = end

    def _create(self, path: str, shape: tuple[int, ...], dtype: np.dtype, num_leading: int) -> Any:
        spec = {
            **_driver(self._folder, path),
            "metadata": {
                "shape": list(shape),
                "chunks": _chunk(shape, dtype.itemsize, num_leading),
                "dtype": "bfloat16" if dtype.name == "bfloat16" else dtype.str,
                # Weights look random, so compression would save too little to be worth its time.
                "compressor": None,
                "fill_value": None,
            },
        }
        return tensorstore.open(
            spec, create=True, delete_existing=True, context=_context()
        ).result()


def describe(folder: Path, description: Mapping[str, Any]) -> None:
    """Writes the description of the weights in a folder."""
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


def part_fields(description: Mapping[str, Any]) -> dict[str, dict[str, Scalar]]:
    """Returns the config of each part from the description of weights."""
    # Older versions wrote only `parts`.
    parts = description.get("fields", description["parts"])
    return {part: read_fields(stored) for part, stored in parts.items()}


def stored_config(folder: Path, part: str, step: int | None = None) -> dict[str, Scalar] | None:
    """Returns the stored config of a part; None if there is none.

    Args:
        folder: A weight folder or the output folder of a run.
        step: Checkpoint of a run; defaults to the newest.
    """
    try:
        if (folder / DESCRIPTION).is_file():
            return part_fields(json.loads((folder / DESCRIPTION).read_text())).get(part)
        model = _checkpoint(folder, step).parent / "model" / "metadata"
        stored = json.loads(model.read_text())
        fields = read_fields(stored.get("fields", stored["config"]))
    except (OSError, ValueError, KeyError):
        return None
    prefix = f"{part}."
    return {k.removeprefix(prefix): x for k, x in fields.items() if k.startswith(prefix)} or None


class StoredParams:
    """Parameters in a weight folder or in a checkpoint of a run."""

    def __init__(self, folder: Path, step: int | None = None):
        """Opens the parameters; arrays are read on demand.

        Args:
            folder: A weight folder or the output folder of a run.
            step: Checkpoint of a run; defaults to the newest.

        Raises:
            ValueError: There are no parameters, or no such checkpoint.
        """
        self.description: dict[str, Any] | None = None
        if (folder / DESCRIPTION).is_file():
            self.description = json.loads((folder / DESCRIPTION).read_text())
            self._folder, self._root = folder / PARAMS, ()
            if step is not None:
                raise ValueError(f"step={step}: {folder} holds weights, which have no steps")
        else:
            self._folder, self._root = _checkpoint(folder, step), ("params",)
        handler: Any = ocp.PyTreeCheckpointHandler()
        tree = handler.metadata(self._folder.absolute()).tree
        for name in self._root:
            tree = tree[name]
        self._leaves = {
            "/".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path): leaf
            for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        }
        self._arrays: dict[str, Any] = {}
        structure = json.loads((self._folder / "_METADATA").read_text())
        self._is_ocdbt = structure.get("use_ocdbt", False)
        self._is_zarr3 = structure.get("use_zarr3", False)

    @property
    def folder(self) -> Path:
        """Folder that holds the arrays."""
        return self._folder

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter by path."""
        return {path: tuple(leaf.shape) for path, leaf in self._leaves.items()}

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        return {path: np.dtype(leaf.dtype) for path, leaf in self._leaves.items()}

    def read(self, path: str, index: tuple[int | slice, ...] = ()) -> np.ndarray:
        """Reads a slice of a parameter in its stored dtype."""
        if path not in self._arrays:
            name = "/".join((*self._root, path))
            spec = _driver(self._folder, name, self._is_ocdbt, self._is_zarr3)
            opened = tensorstore.open(spec, open=True, read=True, context=_context())
            self._arrays[path] = opened.result()
        return np.asarray(self._arrays[path][index].read().result())

    def restore(self, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Loads parameters by path with the shardings and dtypes of `shapes`."""
        item: dict[str, Any] = {}
        for path, shape in shapes.items():
            *parents, name = (*self._root, *path.split("/"))
            node = item
            for parent in parents:
                node = node.setdefault(parent, {})
            node[name] = shape
        args = restore_args(item, partial=True)
        with _without_warnings(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.restore(self._folder.absolute(), args=args)
        for name in self._root:
            tree = tree[name]
        return {
            "/".join(key.key for key in path): leaf
            for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        }


def _checkpoint(folder: Path, step: int | None) -> Path:
    checkpoints = checkpoints_of(folder)
    if "://" in str(checkpoints):
        raise ValueError(
            f"{folder}: its checkpoints are in {checkpoints}, and arrays are read from local "
            "folders only; mount the store or copy them, and launch the run once more with "
            "trainer.checkpointer.location set to that folder"
        )
    names = [path.name for path in Path(checkpoints).glob("*")]
    steps = sorted(int(name) for name in names if name.isdecimal())
    if not steps:
        raise ValueError(
            f"{folder}: neither {DESCRIPTION} nor a complete checkpoint is there; name a folder "
            "that `python -m mm1_jax convert_checkpoint` made, or the output folder of a run"
        )
    if step not in (None, *steps):
        raise ValueError(f"step={step}: {folder} has complete checkpoints of the steps {steps}")
    return Path(checkpoints) / str(steps[-1] if step is None else step) / "state"


def _driver(folder: Path, path: str, is_ocdbt: bool = False, is_zarr3: bool = False) -> dict:
    store: dict[str, Any] = {"driver": "file", "path": f"{folder.absolute()}/"}
    name = path.replace("/", ".") + "/"
    if is_ocdbt:
        store = {"driver": "ocdbt", "base": store, "path": name}
    else:
        store["path"] += name
    return {"driver": "zarr3" if is_zarr3 else "zarr", "kvstore": store}


def _context() -> tensorstore.Context:
    # No cache: nothing is read twice, and writes go to disk at once.
    return tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})


def _chunk(shape: tuple[int, ...], itemsize: int, num_leading: int) -> list[int]:
    """Returns the chunk shape of an array's files: rows of one slice, up to `_CHUNK_BYTES`."""
    chunk, size = [1] * len(shape), itemsize
    for dim in reversed(range(num_leading, len(shape))):
        most = min(shape[dim], max(1, _CHUNK_BYTES // size))
        # Use chunks of nearly equal size, because the last one is stored padded.
        chunk[dim] = -(-shape[dim] // -(-shape[dim] // most))
        if chunk[dim] < shape[dim]:
            break
        size *= shape[dim]
    return chunk


class _without_warnings:
    """Silences Orbax warnings about files that this way of saving does not create."""

    def __enter__(self) -> None:
        self._verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)

    def __exit__(self, *_: Any) -> None:
        logging.set_verbosity(self._verbosity)


def restore_args(shapes: Any, *, partial: bool) -> ocp.args.PyTreeRestore:
    """Returns arguments that make Orbax restore arrays with these dtypes and shardings.

    Args:
        partial: Allows the checkpoint to contain additional arrays.
    """
    return ocp.args.PyTreeRestore(
        item=shapes,
        restore_args=jax.tree.map(
            lambda x: ocp.ArrayRestoreArgs(
                sharding=x.sharding, global_shape=x.shape, dtype=x.dtype
            ),
            shapes,
        ),
        partial_restore=partial,
    )


def complaint(what: str, names: Sequence[str]) -> list[str]:
    """Returns lines of an error message that list names under a heading; [] without names."""
    if not names:
        return []
    shown = [f"    {name}" for name in names[:_MAX_NAMED]]
    if len(names) > _MAX_NAMED:
        shown.append(f"    and {len(names) - _MAX_NAMED} more")
    return [f"  {what}:", *shown]
