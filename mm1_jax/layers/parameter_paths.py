"""Rules that pick parameters by path, and functions that split parameter trees by them.

A path joins the model's attribute names: `decoder/stack/layer/attention/query/kernel`. A rule is a
regular expression that matches either the whole path of a parameter or the path of a module that
contains it: `vision_encoder` picks the whole encoder, `.*/attention` every attention layer. All
layers of a stack share their paths, so a rule picks all of them or none.
"""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax

from mm1_jax.config import close_names

# Maximum number of candidates that an error lists.
_MAX_NAMED = 8


def parameter_path(keys: tuple[Any, ...]) -> str:
    """Joins the key path that `jax.tree_util` gives for nested dicts."""
    return "/".join(str(entry.key) for entry in keys)


def parameter_paths(params: Any) -> list[str]:
    """Returns the paths of all parameters of nested dicts, in the order of the tree's leaves."""
    return jax.tree.leaves(map_with_paths(lambda path, _: path, params))


def map_with_paths(function: Callable[[str, Any], Any], params: Any) -> Any:
    """Maps `function(path, parameter)` over nested dicts of parameters."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, x: function(parameter_path(keys), x), params
    )


def picks(rule: str, path: str) -> bool:
    """Returns whether the rule picks the parameter at `path`."""
    return any(re.fullmatch(rule, prefix) for prefix in _path_prefixes(path))


def picked(
    rules: Sequence[str], paths: Sequence[str], field: str, what: str = "parameter"
) -> frozenset[str]:
    """Returns the paths that at least one rule picks.

    Args:
        field: Config field that holds the rules, for error messages: "optimizer.frozen".
        what: Noun for what the paths belong to, for error messages.

    Raises:
        ValueError: A rule is not a valid regular expression, or picks nothing.
    """
    chosen: set[str] = set()
    for rule in rules:
        try:
            own = {path for path in paths if picks(rule, path)}
        except re.error as error:
            raise ValueError(f"{field}: {rule!r} is not a regular expression ({error})") from None
        if not own:
            raise ValueError(_picks_nothing(rule, paths, field, what))
        chosen |= own
    return frozenset(chosen)


def partition(params: Any, chosen: Collection[str]) -> tuple[Any, Any]:
    """Splits nested dicts into the parameters at the chosen paths and the others.

    Dicts that would be empty are left out. If nothing or everything is chosen, one of the two
    results is `params` itself and the other is {}.
    """
    paths = parameter_paths(params)
    if all(path in chosen for path in paths):
        return params, {}
    if not any(path in chosen for path in paths):
        return {}, params
    return (
        _filtered(params, lambda path: path in chosen, ()),
        _filtered(params, lambda path: path not in chosen, ()),
    )


def union(first: Any, second: Any) -> Any:
    """Inverts `partition`: merges its two results."""
    if not first or not second:
        return first or second
    joined = first | second
    for key in first.keys() & second.keys():
        joined[key] = union(first[key], second[key])
    return joined


def _path_prefixes(path: str) -> Iterator[str]:
    names = path.split("/")
    return ("/".join(names[:depth]) for depth in range(1, len(names) + 1))


def _filtered(tree: Any, keep: Callable[[str], bool], parents: tuple[str, ...]) -> Any:
    kept = {}
    for key, child in tree.items():
        path = (*parents, str(key))
        if isinstance(child, dict):
            inner = _filtered(child, keep, path)
            if inner:
                kept[key] = inner
        elif keep("/".join(path)):
            kept[key] = child
    return kept


def _picks_nothing(rule: str, paths: Sequence[str], field: str, what: str) -> str:
    """Builds an error message with suggestions, preferring whole modules to single parameters."""
    prefixes = list(dict.fromkeys(prefix for path in paths for prefix in _path_prefixes(path)))
    # A rule such as "router" names the end of a path; it lacks a leading ".*/".
    ends = [each for each in prefixes if each == rule or each.endswith(f"/{rule}")]
    if ends:
        return (
            f"{field}: {rule!r} picks no {what}, because a rule must match from the start of a "
            f"path; {'.*/' + rule!r} picks {_listed(ends)}"
        )
    close = close_names(rule, prefixes) or sorted({path.split("/")[0] for path in paths})
    outermost = [x for x in close if not any(y != x and y in _path_prefixes(x) for y in close)]
    return f"{field}: {rule!r} picks no {what}; did you mean {_listed(outermost)}?"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
