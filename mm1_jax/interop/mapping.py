"""Two-way table between the tensors of a foreign checkpoint and our parameters.

Our parameters are stacked for the scan over layers, so each takes a slice from a tensor of every
layer. Some foreign tensors are joined (queries, keys and values), so one tensor may hold rows of
several parameters. The table knows all names and shapes before any value is read, and reports
missing, unknown and misshapen tensors.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from mm1_jax.checkpoints.weights_folder import complaint
from mm1_jax.config import InstantiableConfig
from mm1_jax.field_types import class_name
from mm1_jax.interop.layout import Layout
from mm1_jax.interop.tensor_files import TensorSpec
from mm1_jax.stored_config import computational_fields, flat_fields


class Piece(NamedTuple):
    """Rows of a foreign tensor, and their place in one of our parameters.

    Attributes:
        parameter: Path, such as "decoder/stack/layer/attention/query/kernel".
        index: Index of the leading dims that the tensor lacks: layer, expert.
        layout: Layout of the rows.
        start: First of the rows in the tensor.
        place: First row that they fill in the parameter's slice.
    """

    parameter: str
    index: tuple[int, ...]
    layout: Layout
    start: int = 0
    place: int = 0

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.layout.their_shape[0])


class Entry(NamedTuple):
    """A tensor of a foreign checkpoint, and where its values go.

    Attributes:
        fill: Value that an export writes to rows without a piece.
        passthrough: Name of a tensor kept beside the weights, which an export writes instead (see
            `passthrough.py`).
    """

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    fill: float = 0.0
    passthrough: str | None = None


class Table(NamedTuple):
    """Conversion table of a foreign checkpoint.

    Attributes:
        parts: Name -> config of each part of an `MM1` that the checkpoint has, such as "decoder".
        entries: Its tensors, in the order of our parameters.
        ignored: Patterns of tensor names that have no place here, such as text towers and buffers.
        notes: Remarks for users.
        prefix: Prefix that wrappers put before the names that transformers knows, such as
            "module.".
        copies: Ignored tensor -> the tensor that it duplicates.
        scalars: Parameters of the model itself that are single numbers, such as "logit_scale".
    """

    parts: Mapping[str, InstantiableConfig]
    entries: Sequence[Entry]
    ignored: Sequence[str] = ()
    notes: Sequence[str] = ()
    prefix: str = ""
    copies: Mapping[str, str] = {}
    scalars: Sequence[str] = ()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of our parameters by path."""
        shapes: dict[str, tuple[int, ...]] = {
            f"{part}/{path}": shape
            for part, cfg in self.parts.items()
            for path, shape in parameter_shapes(cfg).items()
        }
        return shapes | dict.fromkeys(self.scalars, ())

    def unfilled(self) -> list[str]:
        """Returns parameters that no tensor fills, such as the routers of an upcycled decoder."""
        filled = {piece.parameter for entry in self.entries for piece in entry.pieces}
        return [path for path in self.shapes() if path not in filled]


# Name components that torch.compile, FSDP, checkpointing and adapters insert.
_WRAPPERS = (
    *("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"),
    *("base_layer", "lora_A", "lora_B"),
)


def parameter_shapes(cfg: InstantiableConfig) -> dict[str, tuple[int, ...]]:
    """Returns path -> shape of a module's parameters, without allocating them."""
    module = nnx.eval_shape(lambda: cfg.instantiate(rngs=nnx.Rngs(params=0)))
    return flat_shapes(nnx.to_pure_dict(nnx.state(module, nnx.Param)))


def flat_shapes(params: Any) -> dict[str, tuple[int, ...]]:
    return {
        "/".join(str(getattr(key, "key", key)) for key in path): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }


def raise_if_misfit(
    table: Table, specs: Mapping[str, TensorSpec], where: Any, left_out: Sequence[str] = ()
) -> None:
    """Raises ValueError that names the missing, unknown, misshapen and integer tensors.

    Args:
        left_out: Fields that the config leaves out, with the defaults used instead.
    """
    expected = {entry.name: entry.shape for entry in table.entries}
    ignored = [re.compile(pattern) for pattern in table.ignored]
    extra = [
        name
        for name in specs
        if name not in expected and not any(pattern.fullmatch(name) for pattern in ignored)
    ]
    complaints = [
        *complaint("missing", [name for name in expected if name not in specs]),
        *complaint("unknown", extra),
        *complaint(
            "misshapen",
            [
                f"{name} is {list(specs[name].shape)}, expected {list(shape)}"
                for name, shape in expected.items()
                if name in specs and specs[name].shape != shape
            ],
        ),
        *complaint(
            "not floating-point",
            [
                f"{name} ({specs[name].dtype})"
                for name in expected
                if name in specs and specs[name].dtype.kind in "iub"
            ],
        ),
    ]
    if complaints:
        first = f"{where}: tensors do not fit its config"
        if left_out:
            first += f", which leaves out {', '.join(left_out)} (the defaults of its class)"
        if wrappers := sorted({w for name in specs for w in _WRAPPERS if f".{w}." in name}):
            first += (
                f", and have {', '.join(wrappers)} inside their names; save the wrapped model "
                "instead (an adapter after merge_and_unload)"
            )
        raise ValueError("\n".join([first, *complaints]))


def raise_if_read_otherwise(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], what: str, *, has_pixels: bool = True
) -> None:
    """Raises ValueError if parts differ from those that are read from the config of their export.

    Args:
        what: The exported model, such as "a CLIPModel".
        has_pixels: Whether the export has the mean and standard deviation of colors.
    """
    wrong = [f"{what} has no {name}" for name in ours.keys() - theirs.keys()]
    wrong += [f"{what} has {name}" for name in theirs.keys() - ours.keys()]
    for name in (name for name in ours if name in theirs):
        kinds = [class_name(type(parts[name])) for parts in (ours, theirs)]
        if kinds[0] != kinds[1]:
            wrong.append(f"{name} is a {kinds[0]}, and {what} has a {kinds[1]}")
        shapes = [parameter_shapes(parts[name]) for parts in (ours, theirs)]
        fields = [computational_fields(flat_fields(parts[name])) for parts in (ours, theirs)]
        for mark, (mine, other) in (("/", shapes), (".", fields)):
            for path in sorted(mine.keys() | other.keys()):
                if not has_pixels and path.startswith("pixel_"):
                    continue
                if mine.get(path) != other.get(path):
                    shown = [x.get(path, "missing") for x in (mine, other)]
                    wrong.append(f"{name}{mark}{path} is {shown[0]}, and {shown[1]} in {what}")
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError("; ".join(wrong[:3]) + more)


def parameter_dtypes(table: Table, specs: Mapping[str, TensorSpec]) -> dict[str, np.dtype]:
    """Returns the dtype of each parameter: its tensors' dtype, or float32 if they differ."""
    found: dict[str, set[np.dtype]] = {}
    for entry in table.entries:
        for piece in entry.pieces:
            found.setdefault(piece.parameter, set()).add(specs[entry.name].dtype)
    return {
        path: next(iter(dtypes)) if len(dtypes) == 1 else np.dtype(np.float32)
        for path, dtypes in found.items()
    }


def place_of_layer(layer: int, group_size: int) -> tuple[str, tuple[int, ...]]:
    """Returns where a `Stack` keeps a layer: the stacked module's name, and the index in it."""
    group, place = divmod(layer, group_size)
    if group_size == 1:
        return "layer", (layer,)
    if place == group_size - 1:
        return "last_layer", (group,)
    return "layer", (group, place)


def stack_layers(prefix: str, num_layers: int, group_size: int = 1) -> list["Slice"]:
    """Returns the layers of a `Stack`, first to last."""
    places = (place_of_layer(layer, group_size) for layer in range(num_layers))
    return [Slice(f"{prefix}/{name}", index) for name, index in places]


class Slice(NamedTuple):
    """A slice of the parameters below `path`, such as one layer's."""

    path: str
    index: tuple[int, ...] = ()

    def entry(self, name: str, parameter: str, layout: str, **sizes: int) -> Entry:
        """Returns the entry of a foreign tensor that is one of our parameters."""
        piece = self.piece(parameter, layout, **sizes)
        return Entry(name, piece.layout.their_shape, (piece,))

    def piece(self, parameter: str, layout: str, **sizes: int) -> Piece:
        return Piece(self._path(parameter), self.index, Layout(layout, **sizes))

    def _path(self, parameter: str) -> str:
        return f"{self.path}/{parameter}"


def joined(name: str, pieces: Iterable[Piece]) -> Entry:
    """Returns the entry of a foreign tensor that concatenates rows of several parameters."""
    placed, start = [], 0
    for piece in pieces:
        placed.append(piece._replace(start=start))
        start = placed[-1].rows.stop
    return Entry(name, (start, *placed[0].layout.their_shape[1:]), tuple(placed))


def single_number(name: str, parameter: str, shape: tuple[int, ...] = ()) -> Entry:
    """Returns the entry of a foreign tensor of one number, whose shape may be () or (1,)."""
    return Entry(name, shape, (Piece(parameter, (), Layout("one -> one", one=1)),))


def prefix_of(names: Iterable[str], ending: str) -> str | None:
    """Returns what precedes `ending` in the shortest name that has it; None without one."""
    found = sorted({n.removesuffix(ending) for n in names if n.endswith(ending)}, key=len)
    return found[0] if found else None
