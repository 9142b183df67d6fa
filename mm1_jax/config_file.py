"""Configs as files: every field by path, in JSON that `--print_config=json` prints.

    {
      "config": "mm1_tiny",
      "fields": {"model.connector.klass": "mm1_jax.models.connectors.mlp.MLP", ...},
      "derived": {"input.image_size": null, ...}
    }

`fields` are those of a resolved config, spelled as runs store them (`stored_config`), with null for
a field that is not set, "REQUIRED" for one that a constructor sets, and [] and {} for empty ones.
`derived` lists the fields that follow from others, with their values before `resolve`, so that they
follow an override, too. A run's `config.json` is such a file.

Nothing that a file names is run or imported, but for the modules of this package. A class has to be
a `Configurable` of this package, or one that is loaded, and the type of its field has to admit it;
functions have to be those that named configs use.
"""

import ast
import enum
import importlib
import json
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm1_jax.class_choice import default_child, family
from mm1_jax.config import (
    REQUIRED,
    ConfigBase,
    Configurable,
    close_names,
    config_for_class,
    config_for_function,
    field_annotation,
)
from mm1_jax.field_types import alternative_types, class_name, complaints
from mm1_jax.stored_config import Scalar, scalar, with_present_names

_PACKAGE = __name__.partition(".")[0]
# Keys of a file; `text` is a digest that runs store.
_KEYS = ("config", "fields", "derived", "text")
_STEP = re.compile(r"""(?:^|\.)(\w+)|\[(\d+)\]|\[('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\]""")
_UNSET = "REQUIRED"
_CLASH = "is a value in one line of the file, and a part with fields or items in another"

# A value in a file.
Value = Scalar | list | dict
# Finds a function or class that named configs use by its import path.
Lookup = Callable[[str], Any]


@dataclass(frozen=True)
class ConfigFile:
    """Content of a config file; errors name it as `source`.

    Attributes:
        config: The named config that the file was made from.
        fields: Values by path.
        derived: Values before `resolve` of the fields that it fills in.
    """

    source: str
    config: str
    fields: Mapping[str, Value]
    derived: Mapping[str, Value]


def every_field(cfg: ConfigBase) -> dict[str, Any]:
    """Returns all values in a config by path, with unset fields and empty containers."""
    found: dict[str, Any] = {}
    cfg.visit(found.__setitem__, lambda path, value, children: children or None)
    return found


def full_text(cfg: ConfigBase) -> str:
    """Returns a line `path: value` for every field."""
    return "\n".join(f"{path}: {_shown(value)}" for path, value in every_field(cfg).items())


def as_json(name: str, written: ConfigBase, resolved: ConfigBase) -> str:
    """Returns the text of a file that is read back to an equal config.

    Args:
        name: The named config that it comes from.
        written: The config before `resolve`.

    Raises:
        ValueError: A field holds a value that JSON has no form for.
    """
    for path, value in every_field(resolved).items():
        _raise_if_not_storable(path, value)
    content = {"config": name, "fields": _values(resolved), "derived": derived(written, resolved)}
    return json.dumps(content, indent=2)


def derived(written: ConfigBase, resolved: ConfigBase) -> dict[str, Value]:
    """Returns the values before `resolve` of the fields that it fills in or changes."""
    before, after = _values(written), _values(resolved)
    return {
        path: value
        for path, value in before.items()
        if path in after and (after[path] != value or type(after[path]) is not type(value))
    }


def read_config_file(path: Path | str) -> ConfigFile:
    """Reads a file; `config_of` checks its fields.

    Raises:
        ValueError: It cannot be read, or is not of the form that `as_json` writes.
    """
    source = f"--config_file={path}"
    try:
        content = json.loads(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"{source}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise ValueError(
            f"{source}: is not JSON ({error}); --print_config=json prints such a file"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("fields"), dict):
        raise ValueError(
            f'{source}: expected an object with "fields", as --print_config=json prints it'
        )
    for key in content:
        if key not in _KEYS:
            close = close_names(key, _KEYS)
            hint = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(_KEYS)}"
            raise ValueError(f"{source}: there is no key {key!r}; {hint}")
    unset, name = content.get("derived", {}), content.get("config", Path(path).stem)
    if not isinstance(unset, dict) or not isinstance(name, str) or not name:
        raise ValueError(f'{source}: expected a name as "config" and an object as "derived"')
    for field in unset:
        if field not in content["fields"]:
            raise ValueError(f'{source}: {field}: is in "derived" and not in "fields"')
    return ConfigFile(source, name, content["fields"], unset)


def config_of(file: ConfigFile, lookup: Lookup) -> Any:
    """Makes the config of a file, before `resolve`.

    Fields that the file lacks have the defaults of their classes.

    Args:
        lookup: Finds what named configs use, by import path; raises LookupError.

    Raises:
        ValueError: A path, class or value is wrong; names the file, the path, what was expected.
    """
    reader = _Reader(file.source, lookup)
    root = _tree(file.source, {**file.fields, **file.derived})
    cfg = reader.read("", root, Any, None)
    resolve = getattr(getattr(cfg, "klass", None), "resolve", None)
    if resolve is None:
        raise ValueError(f"{file.source}: klass: expected the class of an experiment")
    _raise_if_not_followed(file, cfg, resolve)
    return cfg


def _raise_if_not_followed(file: ConfigFile, cfg: Any, resolve: Callable[[Any], Any]) -> None:
    """Raises ValueError if a derived field differs from the value that follows from the others."""
    try:
        resolved = _values(resolve(cfg))
    except ValueError:
        # Overrides may set what is missing, and the launch resolves the config again.
        return
    for path in file.derived:
        stated, follows = file.fields[path], resolved.get(path)
        if stated != follows:
            raise ValueError(
                f"{file.source}: {path}={stated!r}: the other fields make it {follows!r}; to set "
                'it, remove it from "derived"'
            )


def _values(cfg: ConfigBase) -> dict[str, Value]:
    return {path: _value(value) for path, value in every_field(cfg).items()}


def _value(value: Any) -> Value:
    if value is REQUIRED:
        return _UNSET
    if isinstance(value, list | tuple | range | dict):
        return {} if isinstance(value, dict) else []
    return scalar(value)


def _raise_if_not_storable(path: str, value: Any) -> None:
    named = (type, types.FunctionType, types.MethodType, enum.Enum, type(REQUIRED))
    if not isinstance(value, named) and _value(value) == repr(value):
        raise ValueError(f"{path}={value!r}: a file holds no {type(value).__name__}")


def _shown(value: Any) -> str:
    named = isinstance(value, type | types.FunctionType | types.MethodType)
    return repr(scalar(value) if named else value)


@dataclass(frozen=True)
class _Branch:
    """The fields below a path: of a config by name, of a list by number, of a dict by key."""

    children: dict[str | int, Any]
    is_config: bool


def _tree(source: str, fields: Mapping[str, Value]) -> _Branch:
    root = _Branch({}, is_config=True)
    for path, value in fields.items():
        steps = _steps(source, path)
        branch = root
        for (key, _), (_, is_name) in zip(steps, steps[1:], strict=False):
            child = branch.children.setdefault(key, _Branch({}, is_config=is_name))
            if not isinstance(child, _Branch) or child.is_config != is_name:
                raise ValueError(f"{source}: {path}: {_CLASH}")
            branch = child
        if steps[-1][0] in branch.children:
            raise ValueError(f"{source}: {path}: {_CLASH}")
        branch.children[steps[-1][0]] = value
    return root


def _steps(source: str, path: str) -> list[tuple[str | int, bool]]:
    """Splits a path into keys; the flag of a key is true if it is the name of a field."""
    steps: list[tuple[str | int, bool]] = []
    end = 0
    for match in _STEP.finditer(path):
        if match.start() != end:
            break
        name, number, key = match.groups()
        if name:
            steps.append((name, True))
        else:
            steps.append((int(number) if number else ast.literal_eval(key), False))
        end = match.end()
    if not steps or end != len(path):
        raise ValueError(
            f"{source}: {path!r}: expected a path such as input.streams[0].weight or evals['name']"
        )
    return steps


@dataclass(frozen=True)
class _Reader:
    """Makes configs and values from the tree of a file."""

    source: str
    lookup: Lookup

    def read(self, path: str, node: Any, annotation: Any, default: Any) -> Any:
        """Returns the value at a path.

        Args:
            annotation: The type of the field.
            default: The value of the field in the default config of its class.
        """
        if isinstance(node, _Branch):
            read = self._config if node.is_config else self._container
            value = read(path, node, annotation, default)
        else:
            value = self._leaf(path, node, annotation, default)
        if value is not REQUIRED and not (node is None and default is None):
            for complaint in complaints(path, value, annotation):
                raise ValueError(f"{self.source}: {complaint}")
        return value

    def _config(self, path: str, node: _Branch, annotation: Any, default: Any) -> Any:
        cfg = self._empty_config(path, node, annotation, default)
        for complaint in complaints(path, cfg, annotation):
            expected = ", ".join(family(annotation, default))
            hint = f"; it can be {expected}" if expected else ""
            raise ValueError(f"{self.source}: {complaint}{hint}")
        for name, child in node.children.items():
            where = f"{path}.{name}" if path else str(name)
            if name in ("klass", "fn") and isinstance(child, str):
                continue
            if name not in cfg:
                known = [each for each in cfg.keys() if each != "klass"]  # noqa: SIM118
                close = close_names(str(name), known)
                has = f"it has {', '.join(known)}"
                hint = f"did you mean {' or '.join(close)}?" if close else has
                raise ValueError(
                    f"{self.source}: {where}: {class_name(type(cfg))} has no field {name!r}; {hint}"
                )
            value = self.read(
                where, child, field_annotation(cfg, str(name)), getattr(cfg, str(name))
            )
            setattr(cfg, str(name), value)
        return cfg

    def _empty_config(self, path: str, node: _Branch, annotation: Any, default: Any) -> Any:
        """Makes a config of the class that a branch names, with the defaults of the class."""
        for kind in ("klass", "fn"):
            name = node.children.get(kind)
            if isinstance(name, str):
                where = f"{path}.{kind}" if path else kind
                found = self._named(where, name)
                if kind == "fn":
                    return config_for_function(found)
                if not isinstance(found, type):
                    raise ValueError(f"{self.source}: {where}={name!r}: is no class")
                if issubclass(found, Configurable):
                    return found.default_config()
                return config_for_class(found)
        if isinstance(default, ConfigBase):
            return default.clone()
        try:
            return default_child(annotation, path)
        except ValueError:
            where = f"{path}.klass" if path else "klass"
            raise ValueError(
                f"{self.source}: {where}: is missing, expected the import path of a class"
            ) from None

    def _container(self, path: str, node: _Branch, annotation: Any, default: Any) -> Any:
        kind, inner = _container_type(annotation, default)
        items = node.children.items()
        if kind is dict:
            return {k: self.read(f"{path}[{k!r}]", v, inner(0), None) for k, v in items}
        if sorted(map(str, node.children)) != sorted(map(str, range(len(node.children)))):
            raise ValueError(
                f"{self.source}: {path}: expected items from {path}[0] on without a gap, found "
                f"{', '.join(f'[{key!r}]' for key in node.children)}"
            )
        return kind(
            self.read(f"{path}[{i}]", value, inner(int(i)), None)
            for i, value in sorted(items, key=lambda item: int(item[0]))
        )

    def _leaf(self, path: str, value: Any, annotation: Any, default: Any) -> Any:
        if value == _UNSET and default is REQUIRED:
            return REQUIRED
        if value in ([], {}) and isinstance(value, list | dict):
            return _container_type(annotation, default)[0]()
        if isinstance(value, list | dict):
            raise ValueError(
                f"{self.source}: {path}: expected a field a line, such as {path}[0], and no "
                f"{type(value).__name__} with values"
            )
        if not isinstance(value, str):
            return value
        types_of_field = alternative_types(annotation)
        for each in types_of_field:
            if isinstance(each, type) and issubclass(each, enum.Enum):
                members = {f"{each.__name__}.{member.name}": member for member in each}
                if value in members:
                    return members[value]
        if any(typing.get_origin(x) is Callable or x is Callable for x in types_of_field) or any(
            (typing.get_origin(x) or x) in (type, types.FunctionType) for x in types_of_field
        ):
            return self._named(path, value)
        return value

    def _named(self, path: str, name: str) -> Any:
        """Finds the class or function of an import path."""
        name = with_present_names(name)
        module, _, attribute = name.rpartition(".")
        if module.startswith(f"{_PACKAGE}."):
            try:
                found = getattr(importlib.import_module(module), attribute, None)
            except ImportError:
                found = None
            if isinstance(found, type) and issubclass(found, Configurable):
                return found
        try:
            return self.lookup(name)
        except LookupError as error:
            close = close_names(name, map(str, error.args[1:]))
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ValueError(
                f"{self.source}: {path}={name!r}: expected the import path of a class of "
                f"{_PACKAGE}, or of a class or function that a named config uses{hint}"
            ) from None


def _container_type(annotation: Any, default: Any) -> tuple[Any, Callable[[int], Any]]:
    """Returns the container type of a field, and a function from item index to item type."""
    for each in alternative_types(annotation):
        origin, args = typing.get_origin(each) or each, typing.get_args(each)
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return dict, lambda i, args=args: args[1] if len(args) == 2 else Any
        if origin is tuple:
            is_fixed = bool(args) and args[-1] is not Ellipsis
            return (
                tuple,
                lambda i, args=args, is_fixed=is_fixed: (
                    (args[i] if i < len(args) else Any) if is_fixed else (args or (Any,))[0]
                ),
            )
        if origin in (list, Sequence, Iterable, Collection):
            kind = list if origin is list or isinstance(default, list) else tuple
            return kind, lambda i, args=args: (args or (Any,))[0]
    kind = type(default) if isinstance(default, dict | list | tuple) else list
    return kind, lambda i: Any
