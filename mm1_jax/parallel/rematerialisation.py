"""Rematerialization: what layers save for the backward pass.

The fields `saved_names` and `offloaded_names` of a stack list named values. A layer registers a
name once, as a module constant, and marks a value with it:

    QUERY = saved_name("query")
    query = checkpoint_name(query, QUERY)

JAX silently ignores unknown names in a policy, so stacks check them.
"""

import enum
from collections.abc import Iterable

from mm1_jax.config import close_names

_names: set[str] = set()


class Remat(enum.Enum):
    """Values that a layer saves for the backward pass.

    NONE saves everything, FULL only the layer's input, DOTS also matrix products. With FULL, named
    values (`jax.ad_checkpoint.checkpoint_name`) can be saved as well.
    """

    NONE = "none"
    FULL = "full"
    DOTS = "dots"


def saved_name(name: str) -> str:
    """Registers and returns a name that a stack may be configured to save."""
    _names.add(name)
    return name


def check_saved_names(field: str, names: Iterable[str]) -> None:
    """Raises ValueError if a name is not registered; the message mentions `field`."""
    for name in names:
        if name not in _names:
            known = close_names(name, _names) or sorted(_names)
            raise ValueError(
                f"{field}: no layer has a value {name!r}; expected some of {', '.join(known)}"
            )
