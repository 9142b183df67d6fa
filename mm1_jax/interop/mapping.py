"""Which tensor of a foreign checkpoint holds which of our parameters: a table that goes both ways.

Ours are stacked for the scan over layers, so a parameter takes a slice from a tensor of every
layer; some of theirs are joined (queries, keys and values), so a tensor may have rows of several.
The table is complete before a value is read: it knows all shapes, and says what a checkpoint
lacks, has too much, or has in another shape.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from mm1_jax.checkpoints.weights_folder import complaint
from mm1_jax.config import InstantiableConfig
from mm1_jax.interop.layout import Layout
from mm1_jax.interop.tensor_files import TensorSpec


class Piece(NamedTuple):
    """Where rows of a tensor go: a place in one of our parameters.

    Attributes:
        parameter: Path, as in "decoder/stack/layer/attention/query/kernel".
        index: Of the leading dims that the tensor has not: layer, expert.
        layout: Of the rows.
        start: The first of the rows.
        place: The first row of the parameter's slice that they fill.
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
        fill: What it holds, on the way back, where no piece does.
        aside: The name of the tensor that was kept beside the weights, on the way back, and that
            this is all of (see `aside.py`).
    """

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    fill: float = 0.0
    aside: str | None = None


class Table(NamedTuple):
    """What a foreign checkpoint is, in our terms.

    Attributes:
        parts: The config of each part of an `MM1` that it has: "decoder" and so on.
        entries: Its tensors, in the order of ours.
        ignored: Patterns of names that have no place here: text towers, buffers.
        notes: What users should know of it.
        prefix: What precedes the names that transformers knows the tensors by, as wrappers leave
            it: "module." and the like.
        copies: Ignored tensors that are another one again -> that one.
    """

    parts: Mapping[str, InstantiableConfig]
    entries: Sequence[Entry]
    ignored: Sequence[str] = ()
    notes: Sequence[str] = ()
    prefix: str = ""
    copies: Mapping[str, str] = {}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of our parameters by path."""
        return {
            f"{part}/{path}": shape
            for part, cfg in self.parts.items()
            for path, shape in parameter_shapes(cfg).items()
        }

    def unfilled(self) -> list[str]:
        """Our parameters that no tensor has, such as the routers of an upcycled decoder."""
        filled = {piece.parameter for entry in self.entries for piece in entry.pieces}
        return [path for path in self.shapes() if path not in filled]


# What torch.compile, FSDP, checkpointing and adapters leave inside names.
_WRAPPERS = (
    *("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"),
    *("base_layer", "lora_A", "lora_B"),
)


def parameter_shapes(cfg: InstantiableConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of the parameters of a module, without making one."""
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
    """Raises ValueError, naming the tensors that are missing, too many, or of another shape.

    Args:
        left_out: Fields that the config does not give, with the defaults that were taken.
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
        *complaint("not known", extra),
        *complaint(
            "misshapen",
            [
                f"{name} is {list(specs[name].shape)}, expected {list(shape)}"
                for name, shape in expected.items()
                if name in specs and specs[name].shape != shape
            ],
        ),
        *complaint(
            "not of numbers with a fraction",
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
                f", and have {', '.join(wrappers)} inside their names; save the model that is "
                "wrapped (of an adapter, after merge_and_unload)"
            )
        raise ValueError("\n".join([first, *complaints]))


def parameter_dtypes(table: Table, specs: Mapping[str, TensorSpec]) -> dict[str, np.dtype]:
    """The dtype of each of our parameters: that of its tensors; float32 where those differ."""
    found: dict[str, set[np.dtype]] = {}
    for entry in table.entries:
        for piece in entry.pieces:
            found.setdefault(piece.parameter, set()).add(specs[entry.name].dtype)
    return {
        path: next(iter(dtypes)) if len(dtypes) == 1 else np.dtype(np.float32)
        for path, dtypes in found.items()
    }


def place_of_layer(layer: int, group_size: int) -> tuple[str, tuple[int, ...]]:
    """Where a `Stack` keeps a layer: the name of the stacked module, and the place in it."""
    group, place = divmod(layer, group_size)
    if group_size == 1:
        return "layer", (layer,)
    if place == group_size - 1:
        return "last_layer", (group,)
    return "layer", (group, place)


def stack_layers(prefix: str, num_layers: int, group_size: int = 1) -> list["Slice"]:
    """The layers of a `Stack` in reading order."""
    places = (place_of_layer(layer, group_size) for layer in range(num_layers))
    return [Slice(f"{prefix}/{name}", index) for name, index in places]


class Slice(NamedTuple):
    """A slice of the parameters below `path`: that of one layer."""

    path: str
    index: tuple[int, ...] = ()

    def entry(self, name: str, parameter: str, layout: str, **sizes: int) -> Entry:
        """A tensor of theirs that is one of ours."""
        piece = self.piece(parameter, layout, **sizes)
        return Entry(name, piece.layout.their_shape, (piece,))

    def piece(self, parameter: str, layout: str, **sizes: int) -> Piece:
        return Piece(self._path(parameter), self.index, Layout(layout, **sizes))

    def _path(self, parameter: str) -> str:
        return f"{self.path}/{parameter}"


def joined(name: str, pieces: Iterable[Piece]) -> Entry:
    """A tensor of theirs whose rows are several of ours, one after the other."""
    placed, start = [], 0
    for piece in pieces:
        placed.append(piece._replace(start=start))
        start = placed[-1].rows.stop
    return Entry(name, (start, *placed[0].layout.their_shape[1:]), tuple(placed))


def prefix_of(names: Iterable[str], ending: str) -> str | None:
    """What precedes `ending` in the one name that has it; None without such a name."""
    found = sorted({n.removesuffix(ending) for n in names if n.endswith(ending)}, key=len)
    return found[0] if found else None
