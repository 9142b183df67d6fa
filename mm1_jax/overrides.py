"""Values of config fields from the command line: `--config.trainer.max_steps=100`.

Fields are addressed by path, `evals.digits_vqa.num_examples` or as a config's text spells it,
`input.streams[0].weight`. The text is parsed by ml_collections' config flags into the type of the
field's value; where that is None or REQUIRED, the annotation decides.

`restore_values` takes values as they are stored.
"""

import copy
import enum
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_dict
from ml_collections.config_flags import config_flags

from mm1_jax.config import (
    REQUIRED,
    ConfigBase,
    RequiredFieldValue,
    close_names,
    field_annotation,
)
from mm1_jax.field_types import without_limits

_SCALARS = (bool, int, float, str)


def apply_overrides(cfg: Any, overrides: Mapping[str, str], *, types_from: Any) -> Any:
    """A copy of `cfg` with the fields named in `overrides` set.

    Args:
        cfg: The config to change.
        overrides: Text of the new value by path.
        types_from: The same config with more of its fields filled in, which decides the types.
    """
    cfg = cfg.clone()
    fields = _as_config_dict(types_from)
    for path, text in overrides.items():
        parts = _parts(path)
        value = _parse(path, parts, text, types_from, fields)
        _set(cfg, parts, value)
    return cfg


def _parts(path: str) -> list[str]:
    """`a.b[0]['c']` and `a.b.0.c` are both a, b, 0, c."""
    return re.sub(r"\[(['\"]?)(.*?)\1\]", r".\2", path).split(".")


def _child(value: Any, part: str) -> Any:
    """Returns the value at `part` of a config, dict, list or tuple; raises KeyError."""
    if isinstance(value, ConfigBase):
        if part not in value:
            raise KeyError(part)
        return getattr(value, part)
    if isinstance(value, dict):
        return {str(key): child for key, child in value.items()}[part]
    if isinstance(value, (list, tuple)) and part.isdecimal() and int(part) < len(value):
        return value[int(part)]
    raise KeyError(part)


def _names(value: Any) -> list[str]:
    if isinstance(value, ConfigBase | dict):
        return [str(key) for key in value.keys()]  # noqa: SIM118
    return [str(i) for i in range(len(value))] if isinstance(value, (list, tuple)) else []


def _paths_ending_in(cfg: Any, name: str) -> list[str]:
    paths: list[str] = []
    cfg.visit(lambda path, _: paths.append(".".join(_parts(path))))
    return [path for path in paths if path.rpartition(".")[2] == name]


def _options(annotation: Any) -> set[Any]:
    """The alternatives of a union, without what stands for "not set"."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        options = set().union(*(_options(option) for option in typing.get_args(annotation)))
        # `Required[T]` is a union with Any.
        return options - {Any} if len(options) > 1 else options
    return {without_limits(annotation)} - {types.NoneType, RequiredFieldValue}


def _annotation(cfg: Any, name: str) -> Any:
    return field_annotation(cfg, name) if isinstance(cfg, ConfigBase) else Any


def _type_of_field(value: Any, annotation: Any) -> type | None:
    """The type that text is parsed into, or None if the field cannot be set by text."""
    options = _options(annotation)
    if value is not None and value is not REQUIRED:
        if float in options and type(value) is int:
            return float
        leaf = isinstance(value, (*_SCALARS, enum.Enum, tuple, list))
        return type(value) if leaf and not _holds_configs(value) else None
    if len(options) == 1:
        (option,) = options
        origin = typing.get_origin(option) or option
        if origin is typing.Literal:
            return type(typing.get_args(option)[0])
        if origin in (list, Sequence, Iterable):
            return list
        if isinstance(origin, type) and issubclass(origin, (*_SCALARS, enum.Enum, tuple)):
            return origin
    scalars = options and options <= {*_SCALARS, Any}
    return object if scalars else None


def _holds_configs(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and any(isinstance(v, ConfigBase) for v in value)


def _as_config_dict(value: Any, annotation: Any = Any) -> Any:
    """`value` as ml_collections has it: nested ConfigDicts whose leaves have the fields' types."""
    if isinstance(value, ConfigBase):
        fields = {name: (child, _annotation(value, name)) for name, child in value.items()}
    elif isinstance(value, dict):
        fields = {str(name): (child, Any) for name, child in value.items()}
    elif _holds_configs(value):
        return [_as_config_dict(child) for child in value]
    else:
        field_type = _type_of_field(value, annotation)
        if field_type in (list, tuple):
            field_type = tuple
        if field_type is None or value is None or value is REQUIRED:
            return config_dict.placeholder(field_type or object)
        return field_type(value) if field_type in (float, tuple) else value
    result = config_dict.ConfigDict()
    for name, (child, child_annotation) in fields.items():
        result[name] = _as_config_dict(child, child_annotation)
    return result


def _parse(path: str, parts: list[str], text: str, cfg: Any, fields: Any) -> Any:
    flag = f"--config.{path}={text}"
    holder, value = None, cfg
    for depth, part in enumerate(parts):
        holder = value
        try:
            value = _child(holder, part)
        except KeyError:
            raise ValueError(_unknown_path(flag, parts, depth, holder, cfg)) from None
    annotation = _annotation(holder, parts[-1])
    may_be_none = types.NoneType in typing.get_args(annotation)
    if text == "None" and may_be_none:
        return None
    field_type = _type_of_field(value, annotation)
    if field_type is None:
        inner = [f"{path}.{name}" for name in _names(value) if name not in ("klass", "fn")]
        kind = "a part with fields of its own" if inner else f"{value!r}"
        advice = f"set one of {', '.join(inner)}, or " if inner else ""
        raise ValueError(
            f"{flag}: {path} is {kind}, which cannot be set on the command line; "
            f"{advice}write an experiment that sets it"
        )
    if isinstance(holder, (list, tuple)):
        whole = ".".join(parts[:-1])
        raise ValueError(f"{flag}: set the whole {type(holder).__name__}, --config.{whole}=...")
    spelling = "".join(f"[{p}]" if p.isdecimal() else f".{p}" for p in parts)[1:]
    flag_values = flags.FlagValues()
    argv = ["launch", f"--config.{spelling}={text}"]
    try:
        config_flags.DEFINE_config_dict("config", fields, flag_values=flag_values, sys_argv=argv)
        flag_values(argv)
        config_flag: Any = flag_values["config"]
        parsed = config_flag.override_values[spelling]
    except (flags.Error, ValueError, TypeError) as error:
        expected = "a value" if field_type is object else _described(field_type)
        raise ValueError(f"{flag}: expected {expected} ({error})") from None
    choices = {c for o in _options(annotation) for c in typing.get_args(o) if _is_literal(o)}
    if choices and parsed not in choices:
        raise ValueError(f"{flag}: expected one of {', '.join(map(str, sorted(choices)))}")
    return field_type(parsed) if field_type in (list, tuple) else parsed


def _is_literal(annotation: Any) -> bool:
    return typing.get_origin(annotation) is typing.Literal


def _described(field_type: type) -> str:
    if issubclass(field_type, enum.Enum):
        return f"one of {', '.join(member.name for member in field_type)}"
    return f"a value of type {field_type.__name__}"


def _unknown_path(flag: str, parts: list[str], depth: int, holder: Any, cfg: Any) -> str:
    where = ".".join(parts[:depth]) or "the config"
    names = _names(holder)
    message = f"{flag}: {where} has no field {parts[depth]!r}"
    if not names:
        return f"{message}; it is the value {holder!r}"
    prefix = "".join(f"{part}." for part in parts[:depth])
    close = [prefix + name for name in close_names(parts[depth], names)]
    close += [path for path in _paths_ending_in(cfg, parts[-1])[:5] if path not in close]
    if close:
        return f"{message}; did you mean {' or '.join(close)}?"
    return f"{message}; it has {', '.join(names)}"


def _set(cfg: Any, parts: list[str], value: Any) -> None:
    holder = cfg
    for part in parts[:-1]:
        holder = _child(holder, part)
    if isinstance(holder, ConfigBase):
        setattr(holder, parts[-1], value)
    else:
        key = next(key for key in holder if str(key) == parts[-1])
        holder[key] = value


def is_overridden(path: str, overrides: Mapping[str, str]) -> bool:
    """Returns whether overrides set the field at `path`, or a field that contains it."""
    parts = _parts(path)
    return any(parts[: len(each)] == each for each in map(_parts, overrides))


def restore_values(cfg: Any, values: Mapping[str, Any]) -> Any:
    """A copy of `cfg` with fields set to stored values.

    Fields that are not there, or do not hold numbers, strings or members of an enum, stay.

    Args:
        values: By path; members of an enum as "Enum.NAME", None for a field that is not set.
    """
    cfg = cfg.clone()
    for path, value in values.items():
        parts = _parts(path)
        try:
            holder = cfg
            for part in parts[:-1]:
                holder = _child(holder, part)
            value = _value(value, _child(holder, parts[-1]), _annotation(holder, parts[-1]))
        except (KeyError, ValueError):
            continue
        cfg = _replaced(cfg, parts, value)
    return cfg


def _value(stored: Any, present: Any, annotation: Any) -> Any:
    """The value for a field that is stored so; raises where the field holds none of that kind."""
    if stored is None:
        if present is not None and types.NoneType not in typing.get_args(annotation):
            raise ValueError
        return None
    options = _options(annotation)
    enums = {each for each in options if isinstance(each, type) and issubclass(each, enum.Enum)}
    if isinstance(present, enum.Enum):
        enums.add(type(present))
    for member in (member for each in enums for member in each):
        if f"{type(member).__name__}.{member.name}" == stored:
            return member
    if present is None or present is REQUIRED:
        if not all(option in _SCALARS or _is_literal(option) for option in options):
            raise ValueError
    elif not isinstance(present, _SCALARS) or isinstance(present, enum.Enum):
        raise ValueError
    return stored


def _replaced(holder: Any, parts: Sequence[str], value: Any) -> Any:
    """`holder`, with `value` at the path `parts`."""
    if not parts:
        return value
    child = _replaced(_child(holder, parts[0]), parts[1:], value)
    if isinstance(holder, ConfigBase):
        return holder.set(**{parts[0]: child})
    if isinstance(holder, dict):
        new = copy.copy(holder)
        new.update({key: child for key in holder if str(key) == parts[0]})
        return new
    return type(holder)(child if str(i) == parts[0] else x for i, x in enumerate(holder))
