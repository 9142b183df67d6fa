"""Values of config fields from the command line: `--config.trainer.max_steps=100`.

Fields are addressed by path, `evals.digits_vqa.num_examples` or as a config's text spells it,
`input.streams[0].weight`. ml_collections' config flags parse the text into the type of the field's
value, or of its annotation where the value is None or REQUIRED. Besides values:

    model.connector=AveragePooling      another class, of the family of the present one
    trainer.wandb.project=mm1           a field of an unset config, which begins with its defaults
    evals.digits_vqa=None               an entry of a dict of configs is removed
    evals=digits_vqa,held_out_loss      only these entries of a dict of configs stay

`restore_values` sets values as runs store them.
"""

import copy
import enum
import functools
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_dict
from ml_collections.config_flags import config_flags

from mm1_jax.class_choice import Choice, choose_class, config_classes, default_child
from mm1_jax.config import (
    REQUIRED,
    ConfigBase,
    RequiredFieldValue,
    close_names,
    field_annotation,
)
from mm1_jax.field_types import without_limits

_SCALARS = (bool, int, float, str)


def apply_overrides(
    cfg: Any,
    overrides: Mapping[str, str],
    *,
    types_from: Any,
    note: Callable[[str], None] = lambda text: None,
) -> Any:
    """A copy of `cfg` with the fields named in `overrides` set, in their order.

    Args:
        cfg: The config to change.
        overrides: Text of the new value by path.
        types_from: The same config with more of its fields filled in, which decides the types.
        note: Called with a line for each class that was chosen by name.

    Raises:
        ValueError: There is no such field, or it holds no such value.
    """
    cfg, typed = cfg.clone(), types_from.clone()
    for path, text in overrides.items():
        flag, parts = f"--config.{path}={text}", _parts(path)
        _fill_in(flag, parts, cfg, typed)
        holder, value = _find(flag, parts, typed)
        annotation = _annotation(holder, parts[-1])
        if text == "None" and _is_named_config(holder, value):
            for each in (cfg, typed):
                _remove(each, parts)
            continue
        if _holds_named_configs(value, annotation):
            names = _chosen_names(flag, path, text, value)
            for each in (cfg, typed):
                present = _find(flag, parts, each)[1]
                _set(each, parts, {k: v for k, v in present.items() if str(k) in names})
            continue
        if _is_chosen_by_class(parts, text, value, annotation):
            choice = _choice(flag, path, text, _find(flag, parts, cfg)[1], annotation)
            note(f"{flag}: {choice}")
            value = choice.cfg
        else:
            value = _parse(flag, path, parts, text, holder, value)
        for each in (cfg, typed):
            _set(each, parts, value)
    return cfg


def _fill_in(flag: str, parts: list[str], cfg: Any, typed: Any) -> None:
    """Gives unset configs on the way to a field the defaults of their class."""
    holder = typed
    for depth, part in enumerate(parts[:-1], start=1):
        try:
            value = _child(holder, part)
        except KeyError:
            return
        annotation = _annotation(holder, part)
        if (value is None or value is REQUIRED) and config_classes(annotation):
            try:
                value = default_child(annotation, ".".join(parts[:depth]))
            except ValueError as error:
                raise ValueError(f"{flag}: {error}") from None
            for each in (cfg, typed):
                _set(each, parts[:depth], value)
            value = _child(holder, part)
        holder = value


def _find(flag: str, parts: list[str], cfg: Any) -> tuple[Any, Any]:
    """Returns the holder of the field at a path, and the value of the field."""
    holder, value = None, cfg
    for depth, part in enumerate(parts):
        holder = value
        try:
            value = _child(holder, part)
        except KeyError:
            raise ValueError(_unknown_path(flag, parts, depth, holder, cfg)) from None
    return holder, value


def _is_named_config(holder: Any, value: Any) -> bool:
    return isinstance(holder, dict) and isinstance(value, ConfigBase)


def _holds_named_configs(value: Any, annotation: Any) -> bool:
    """Returns whether a field is a dict of configs, such as the evaluators of an experiment."""
    return isinstance(value, dict) and (
        any(isinstance(child, ConfigBase) for child in value.values())
        or any(config_classes(x) for x in typing.get_args(annotation)[1:])
    )


def _chosen_names(flag: str, path: str, text: str, present: Mapping[Any, Any]) -> set[str]:
    """Returns the names in `a,b`, or none for an empty text or `None`; unknown names raise."""
    known = [str(key) for key in present]
    names = [] if text in ("", "None") else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            close = close_names(name, known)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            has = f"it has {', '.join(known)}" if known else "it is empty"
            raise ValueError(f"{flag}: {path} has no {name!r}{hint or f'; {has}'}")
    return set(names)


def _is_chosen_by_class(parts: list[str], text: str, value: Any, annotation: Any) -> bool:
    if parts[-1] in ("klass", "fn") or (text == "None" and _may_be_none(annotation)):
        return False
    is_unset = value is None or value is REQUIRED
    return isinstance(value, ConfigBase) or (is_unset and bool(config_classes(annotation)))


def _choice(flag: str, path: str, text: str, present: Any, annotation: Any) -> Choice:
    try:
        return choose_class(text, annotation, present)
    except ValueError as error:
        inner = [f"{path}.{name}" for name in _names(present) if name not in ("klass", "fn")]
        advice = f"; to change it, set one of {', '.join(inner)}" if inner else ""
        raise ValueError(f"{flag}: {path} is a part: {error}{advice}") from None


def _may_be_none(annotation: Any) -> bool:
    return types.NoneType in typing.get_args(annotation)


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
    """Returns the alternatives of a union, except None and REQUIRED."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        options = set().union(*(_options(option) for option in typing.get_args(annotation)))
        # `Required[T]` is a union with Any.
        return options - {Any} if len(options) > 1 else options
    return {without_limits(annotation)} - {types.NoneType, RequiredFieldValue}


def _annotation(cfg: Any, name: str) -> Any:
    return field_annotation(cfg, name) if isinstance(cfg, ConfigBase) else Any


def _type_of_field(value: Any, annotation: Any) -> type | None:
    """Returns the type that text is parsed into; None if text cannot set the field."""
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


def _as_leaf(value: Any, field_type: type) -> Any:
    """Returns a field's value for ml_collections, in the type that its text is parsed into."""
    if field_type in (list, tuple):
        field_type = tuple
    if value is None or value is REQUIRED:
        return config_dict.placeholder(field_type)
    return field_type(value) if field_type in (float, tuple) else value


def _brief(value: Any) -> str:
    if isinstance(value, type | types.FunctionType):
        return f"{value.__module__}.{value.__name__}"
    return f"a {type(value).__name__} of configs" if _holds_configs(value) else repr(value)


def _parse(flag: str, path: str, parts: list[str], text: str, holder: Any, value: Any) -> Any:
    annotation = _annotation(holder, parts[-1])
    if text == "None" and _may_be_none(annotation):
        return None
    field_type = _type_of_field(value, annotation)
    if field_type is None:
        name = parts[-1]
        advice = "write an experiment that sets it"
        if name == "klass":
            advice = f"choose the class by --config.{path.removesuffix('.klass')}=CLASS"
        raise ValueError(
            f"{flag}: {path} is {_brief(value)}, which cannot be set on the command line; {advice}"
        )
    if isinstance(holder, (list, tuple)):
        whole = ".".join(parts[:-1])
        raise ValueError(f"{flag}: set the whole {type(holder).__name__}, --config.{whole}=...")
    # A dict of this field alone: to define the flags of a whole config takes a third of a second.
    leaf = config_dict.ConfigDict({"value": _as_leaf(value, field_type)})
    flag_values = flags.FlagValues()
    argv = ["launch", f"--config.value={text}"]
    try:
        config_flags.DEFINE_config_dict("config", leaf, flag_values=flag_values, sys_argv=argv)
        flag_values(argv)
        config_flag: Any = flag_values["config"]
        parsed = config_flag.override_values["value"]
    except (flags.Error, ValueError, TypeError) as error:
        expected = "a value" if field_type is object else _described(field_type)
        reason = str(error).removeprefix(f"flag {argv[1]}: ")
        raise ValueError(f"{flag}: expected {expected} ({reason})") from None
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
    holder = _holder(cfg, parts)
    if isinstance(holder, ConfigBase):
        setattr(holder, parts[-1], value)
    else:
        holder[_key(holder, parts[-1])] = value


def _remove(cfg: Any, parts: list[str]) -> None:
    holder = _holder(cfg, parts)
    del holder[_key(holder, parts[-1])]


def _holder(cfg: Any, parts: list[str]) -> Any:
    return functools.reduce(_child, parts[:-1], cfg)


def _key(holder: Mapping[Any, Any], part: str) -> Any:
    return next(key for key in holder if str(key) == part)


def is_overridden(path: str, overrides: Mapping[str, str]) -> bool:
    """Returns whether overrides set the field at `path`, or a container that holds it."""
    parts = _parts(path)
    return any(parts[: len(each)] == each for each in map(_parts, overrides))


def restore_values(cfg: Any, values: Mapping[str, Any]) -> Any:
    """Returns a copy of `cfg` with fields set to stored values.

    Paths without a field, and fields of other types than numbers, strings and enums, are ignored.

    Args:
        values: Values by path; enum members as "Enum.NAME", None for an unset field.
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
    """Returns the value of a stored scalar; raises ValueError if the field cannot hold it."""
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
    """Returns `holder` with `value` at the path `parts`."""
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
