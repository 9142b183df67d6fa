"""Choices of what layers keep for the backward pass: everything, their input, or named values.

The fields `saved_names` and `offloaded_names` of a stack take them. A layer makes a name once, as a
constant of its module, and marks a value with it:

    QUERY = saved_name("query")
    query = checkpoint_name(query, QUERY)

A policy that names nothing of the sort would keep nothing and say nothing, so stacks check.
"""

import enum
from collections.abc import Iterable

from mm1_jax.config import close_names

_names: set[str] = set()


class Remat(enum.Enum):
    """Values that a layer keeps for the backward pass: all, its input, or also matrix products.

    Values that layers name (`jax.ad_checkpoint.checkpoint_name`) can be kept besides.
    """

    NONE = "none"
    FULL = "full"
    DOTS = "dots"


def saved_name(name: str) -> str:
    """The name, now one that a stack may be told to keep."""
    _names.add(name)
    return name


def check_saved_names(field: str, names: Iterable[str]) -> None:
    """Raises ValueError where a name in a field of that name is none that a layer has made."""
    for name in names:
        if name not in _names:
            known = close_names(name, _names) or sorted(_names)
            raise ValueError(
                f"{field}: no layer has a value {name!r}; expected some of {', '.join(known)}"
            )
