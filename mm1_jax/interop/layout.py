"""Rearrangement of the dims of a foreign tensor into ours, in einops notation.

`Layout("(n h) d -> d n h", n=16, h=64, d=1024)` maps a torch matrix, whose output dim comes first
and consists of heads, to the kernel of a `SplitHeads`. A layout only moves values, so it can be
undone bit for bit.
"""

import dataclasses
import math
import re

import numpy as np


@dataclasses.dataclass(frozen=True, init=False)
class Layout:
    """Two-way rearrangement of dims: theirs on the left of the arrow, ours on the right."""

    theirs: tuple[tuple[str, ...], ...]
    ours: tuple[tuple[str, ...], ...]
    sizes: tuple[tuple[str, int], ...]

    def __init__(self, text: str, **sizes: int):
        """Parses `text`.

        Args:
            sizes: Size of each name in it.
        """
        left, arrow, right = text.partition("->")
        theirs, ours = _dims(left), _dims(right)
        names = [sorted(sum(dims, ())) for dims in (theirs, ours)]
        if not arrow or names[0] != names[1] or len(set(names[0])) < len(names[0]):
            raise ValueError(f"layout {text!r}: each side must have every name once")
        if missing := set(names[0]) - sizes.keys():
            raise ValueError(f"layout {text!r}: no size given for {', '.join(sorted(missing))}")
        object.__setattr__(self, "theirs", theirs)
        object.__setattr__(self, "ours", ours)
        object.__setattr__(self, "sizes", tuple((name, sizes[name]) for name in names[0]))

    @property
    def their_shape(self) -> tuple[int, ...]:
        return self._shape(self.theirs)

    @property
    def our_shape(self) -> tuple[int, ...]:
        return self._shape(self.ours)

    def to_ours(self, x: np.ndarray) -> np.ndarray:
        """Returns a foreign tensor in our layout, as a view where possible."""
        return self._move(x, self.theirs, self.ours)

    def to_theirs(self, x: np.ndarray) -> np.ndarray:
        return self._move(x, self.ours, self.theirs)

    def _shape(self, dims: tuple[tuple[str, ...], ...]) -> tuple[int, ...]:
        sizes = dict(self.sizes)
        return tuple(math.prod(sizes[name] for name in dim) for dim in dims)

    def _move(
        self, x: np.ndarray, source: tuple[tuple[str, ...], ...], to: tuple[tuple[str, ...], ...]
    ) -> np.ndarray:
        assert x.shape == self._shape(source), (x.shape, source)
        sizes = dict(self.sizes)
        before: tuple[str, ...] = sum(source, ())
        order = [before.index(name) for name in sum(to, ())]
        split = x.reshape([sizes[name] for name in before])
        return split.transpose(order).reshape(self._shape(to))


def _dims(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(
        tuple(found.strip("()").split()) for found in re.findall(r"\([^()]*\)|[^\s()]+", text)
    )
