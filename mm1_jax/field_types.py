"""Types of config fields: numbers with a range, and the type check of values.

    weight_decay: NonNegative = 0.1
    pixel_std: tuple[Positive, Positive, Positive] = (0.27, 0.26, 0.28)

A range is metadata of the annotation, and not part of a config's values or text.
"""

import dataclasses
import enum
import functools
import math
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

# An error shows at most this many characters of a value.
_MOST_SHOWN = 80


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number; None means no bound."""

    at_least: int | float | None = None
    above: int | float | None = None
    at_most: int | float | None = None
    below: int | float | None = None
    other_than: int | float | None = None

    def __contains__(self, value: int | float) -> bool:
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
            and value != self.other_than
        )

    def __str__(self) -> str:
        words = {
            "at_least": "at least",
            "above": "more than",
            "at_most": "at most",
            "below": "less than",
            "other_than": "not",
        }
        bounds = dataclasses.asdict(self).items()
        return " and ".join(
            f"{words[name]} {bound:g}" for name, bound in bounds if bound is not None
        )


@dataclasses.dataclass(frozen=True)
class Length:
    """Minimum number of characters or values."""

    at_least: int

    def __contains__(self, value: Collection) -> bool:
        return len(value) >= self.at_least

    def __str__(self) -> str:
        return "a string that is not empty" if self.at_least == 1 else f"at least {self.at_least}"


PositiveInt = Annotated[int, Range(at_least=1)]
NonNegativeInt = Annotated[int, Range(at_least=0)]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(at_least=0)]
Share = Annotated[float, Range(at_least=0, at_most=1)]
Seed = Annotated[int, Range(at_least=0, below=2**63)]
# Weight of the previous value in a running average.
Decay = Annotated[float, Range(at_least=0, below=1)]
NonEmpty = Annotated[str, Length(at_least=1)]


@dataclasses.dataclass(frozen=True)
class Complaint:
    """An error about a value that does not have the type of its field."""

    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}{self.text}"


def complaints(path: str, value: Any, annotation: Any) -> Iterator[Complaint]:
    """Yields errors about the value of a field and the values inside it.

    Floats must be finite; ints are accepted as floats, and lists as tuples. Values of unknown
    types are accepted.
    """
    limits: Sequence[Any] = ()
    if typing.get_origin(annotation) is Annotated:
        annotation, *limits = typing.get_args(annotation)
    if (alternatives := options(annotation)) is not None:
        yield from _of_union(path, value, alternatives)
        return
    if not _is_of(value, annotation):
        yield Complaint(path, _wrong_type(value, annotation))
        return
    expected = [str(limit) for limit in limits if value not in limit]
    if isinstance(value, float) and not math.isfinite(value):
        expected = ["a finite number", *expected]
    if expected:
        yield Complaint(path, f"={value!r}: expected {', '.join(expected)}")
        return
    yield from _of_items(path, value, annotation)


def options(annotation: Any) -> tuple[Any, ...] | None:
    """Returns the alternatives of a union, or None for any other annotation.

    `Required[T]` is a union with Any, which is ignored there.
    """
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return None
    found: list[Any] = []
    for option in typing.get_args(annotation):
        inner = options(option)
        found += [option] if inner is None else inner
    named = tuple(option for option in found if option is not Any)
    return named if len(named) < len(found) and _names_a_type(named) else tuple(found)


def _names_a_type(alternatives: Sequence[Any]) -> bool:
    return any(getattr(option, "__name__", "") != "RequiredFieldValue" for option in alternatives)


def without_limits(annotation: Any) -> Any:
    """Returns the type of an annotation, without its range."""
    is_annotated = typing.get_origin(annotation) is Annotated
    return typing.get_args(annotation)[0] if is_annotated else annotation


def alternative_types(annotation: Any) -> list[Any]:
    """Returns the types that an annotation admits, without their ranges."""
    found = options(annotation)
    return [without_limits(each) for each in ([annotation] if found is None else found)]


@functools.cache
def has_limits(annotation: Any) -> bool:
    """Returns whether an annotation restricts the values of its type: by a range or a Literal."""
    if typing.get_origin(annotation) is typing.Literal:
        return True
    if typing.get_origin(annotation) is Annotated:
        return any(isinstance(x, Range | Length) for x in typing.get_args(annotation)[1:])
    return any(has_limits(inner) for inner in typing.get_args(annotation) if _is_hashable(inner))


def _is_hashable(value: Any) -> bool:
    return getattr(value, "__hash__", None) is not None and not isinstance(value, list)


def _of_union(path: str, value: Any, alternatives: Sequence[Any]) -> Iterator[Complaint]:
    found = [list(complaints(path, value, option)) for option in alternatives]
    if all(found):
        # Prefer an alternative of the right container type whose items are wrong.
        close = [
            each
            for each, option in zip(found, alternatives, strict=True)
            if _is_of(value, without_limits(option))
        ]
        if close or len(alternatives) == 1:
            yield from (close or found)[0]
            return
        yield Complaint(path, _wrong_type(value, *alternatives))


def _of_items(path: str, value: Any, annotation: Any) -> Iterator[Complaint]:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if not args or isinstance(value, str):
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            if len(args) == 2:
                yield from complaints(f"{path} (key {key!r})", key, args[0])
                yield from complaints(f"{path}[{key!r}]", item, args[1])
    elif origin is tuple and args[-1] is not Ellipsis:
        if len(value) != len(args):
            values = "1 value" if len(value) == 1 else f"{len(value)} values"
            yield Complaint(path, f" has {values}, expected {len(args)}")
            return
        for i, (item, arg) in enumerate(zip(value, args, strict=True)):
            yield from complaints(f"{path}[{i}]", item, arg)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from complaints(f"{path}[{i}]", item, args[0])


def _is_of(value: Any, annotation: Any) -> bool:
    """Returns whether a value has a type, regardless of its items and range."""
    origin = typing.get_origin(annotation) or annotation
    if origin is typing.Literal:
        return any(value == arg and type(value) is type(arg) for arg in typing.get_args(annotation))
    if annotation is None or annotation is types.NoneType:
        return value is None
    if origin is Callable:
        return callable(value)
    if origin is type:
        return isinstance(value, type)
    if not isinstance(origin, type) or isinstance(origin, TypeVar):
        return True
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if issubclass(origin, enum.Enum):
        return isinstance(value, origin) or value in [member.value for member in origin]
    if origin in (list, tuple) or origin in (Sequence, Iterable, Collection):
        return isinstance(value, list | tuple | range)
    try:
        return isinstance(value, origin)
    except TypeError:
        # A protocol that is not runtime-checkable.
        return True


def _wrong_type(value: Any, *expected: Any) -> str:
    expected = tuple(each for each in expected if _names_a_type([each]))
    text = " or ".join(map(_described, expected))
    wants_config = any(_is_config(each) for each in expected)
    if isinstance(value, type):
        name = class_name(value)
        advice = f"; write {name}.default_config()" if wants_config else ""
        return f" is the class {name}, expected {text}{advice}"
    if isinstance(value, str) and wants_config:
        return f"={value!r}: expected {text}; import the class and write CLASS.default_config()"
    if _is_config(type(value)):
        return f" is a config of {class_name(type(value))}, expected {text}"
    # The repr of configs in a list would show all of their fields.
    if wants_config or _holds_configs(value) or len(repr(value)) > _MOST_SHOWN:
        kind = "None" if value is None else f"a {type(value).__name__}"
        return f" is {kind}, expected {text}"
    return f"={value!r}: expected {text}"


def _holds_configs(value: Any) -> bool:
    items = value.values() if isinstance(value, Mapping) else value
    return isinstance(value, list | tuple | Mapping) and any(_is_config(type(x)) for x in items)


def _is_config(annotation: Any) -> bool:
    origin = typing.get_origin(annotation) or annotation
    # By name, because config.py imports this file.
    return isinstance(origin, type) and any(c.__name__ == "ConfigBase" for c in origin.__mro__)


def class_name(cls: type) -> str:
    """Returns the name of a class; for a config class, the name of the class it configures.

    Config classes are named `config_class(module.Connector.Config)`.
    """
    parts = cls.__name__.partition("(")[2].rstrip(")").split(".") if "(" in cls.__name__ else []
    return parts[-2] if parts[-1:] == ["Config"] else (parts or [cls.__name__])[-1]


_WORDS: dict[Any, tuple[str, str]] = {
    bool: ("True or False", "booleans"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
}


def _described(annotation: Any) -> str:
    annotation = without_limits(annotation)
    origin, args = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if annotation in (None, types.NoneType):
        return "None"
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, args))}"
    if _is_config(annotation):
        name = class_name(origin)
        return "a config" if name == "InstantiableConfig" else f"a config of {name}"
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return f"one of {', '.join(member.name for member in origin)} of {origin.__name__}"
    if origin in _WORDS:
        return _WORDS[origin][0]
    if origin is dict:
        return f"a dict from {_plural(args[0])} to {_plural(args[1])}" if args else "a dict"
    if origin in (list, tuple, Sequence, Iterable, Collection):
        kind = origin.__name__ if origin in (list, tuple) else "list or tuple"
        return f"a {kind} of {_plural(args[0])}" if args else f"a {kind}"
    return "a function" if origin is Callable else getattr(origin, "__name__", str(origin))


def _plural(annotation: Any) -> str:
    annotation = without_limits(annotation)
    if annotation in _WORDS:
        return _WORDS[annotation][1]
    if _is_config(annotation):
        return _described(annotation).replace("a config", "configs", 1)
    return "values"
