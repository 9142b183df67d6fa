"""Configs in AXLearn's idiom: nested and typed values that instantiate the objects they describe.

    class Connector(Configurable):
        @config_class
        class Config(Configurable.Config):
            input_dim: Required[int] = REQUIRED
            num_image_tokens: int = 144

        def __init__(self, cfg: Config, *, rngs): ...

    connector = Connector.default_config().set(input_dim=1024).instantiate(rngs=rngs)

Names and behavior are those of `axlearn.common.config`, so code written for it works after a change
of its import line. There are three additions: an error lists all missing required fields at once,
`instantiate` passes the constructor its own deep copy, and a runtime argument may not have the name
of a config field.

Values and defaults are copied on assignment: a mutable default needs no factory, and a config never
shares a child with another config.
"""

import copy
import dataclasses
import difflib
import enum
import functools
import inspect
import re
import types
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    TypeVar,
    Union,
    dataclass_transform,
    get_type_hints,
)

import attrs

from mm1_jax.field_types import Complaint, complaints, has_limits

T = TypeVar("T")
C = TypeVar("C", bound="Configurable")
ConfigT = TypeVar("ConfigT", bound="ConfigBase")


class MissingConfigClassDecoratorError(TypeError):
    """A subclass of ConfigBase was not decorated with @config_class."""


class InvalidConfigClassError(TypeError):
    """@config_class was applied to a class that does not derive from ConfigBase."""


class InvalidConfigNameError(ValueError):
    """A field name is not in lower snake case."""


class InvalidConfigValueError(TypeError):
    """A field value is of a type that configs do not hold."""


class NonConfigFieldError(ValueError):
    """A config class has an attribute that is not an annotated field."""


class UnknownFieldError(AttributeError):
    """A field was set that the config does not have."""


class RequiredFieldMissingError(ValueError):
    """A config was instantiated with a required field unset."""


class ConstructionError(TypeError, ValueError):
    """A class cannot be constructed from its config and the runtime arguments of its caller."""


class FrozenConfigError(RuntimeError):
    """Never raised, because configs are never frozen; exists for code that catches it."""


class _MissingAttributeError(AttributeError, KeyError):
    """An unknown field was read.

    It is an AttributeError for `hasattr`, and a KeyError for config classes written for AXLearn
    that override `__getattr__`.
    """

    __str__ = AttributeError.__str__


class RequiredFieldValue:
    """Type of REQUIRED, the value of a field that must be set before instantiation."""

    def __copy__(self) -> "RequiredFieldValue":
        return self

    def __deepcopy__(self, memo: Any) -> "RequiredFieldValue":
        return self

    def __reduce__(self) -> str:
        return "REQUIRED"

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Any = RequiredFieldValue()
# Metadata key of derived fields.
_DERIVED = "derived"
if TYPE_CHECKING:
    Required = Union[T, Any]  # noqa: UP007
else:
    Required = Union[T, RequiredFieldValue, Any]  # noqa: UP007


def is_named_tuple(x: Any) -> bool:
    return isinstance(x, tuple) and hasattr(x, "_fields") and hasattr(x, "_asdict")


def is_attrs(x: Any) -> bool:
    """Returns whether `x` is an attrs class or an instance of one."""
    return hasattr(x, "__attrs_attrs__")


def similar_names(name: str, candidates: Iterable[str]) -> list[str]:
    """Returns the candidates that contain more than half of the trigrams of `name`, best first."""
    pieces = [name[i : i + 3] for i in range(len(name) - 2)]
    scores = {
        key: sum(piece in key for piece in pieces) / max(len(pieces), 1) for key in candidates
    }
    return sorted((key for key in scores if scores[key] > 0.5), key=lambda key: (-scores[key], key))


def close_names(name: str, candidates: Iterable[str]) -> list[str]:
    """Returns a few candidates for a misspelled `name`; swapped letters are recognized too."""
    candidates = list(candidates)
    close = difflib.get_close_matches(name, candidates, n=3)
    return close + [key for key in similar_names(name, candidates) if key not in close][:3]


_validators: dict[Callable[[Any], bool], Callable[[Any], None]] = {}


def register_validator(
    *, match_fn: Callable[[Any], bool], validate_fn: Callable[[Any], None]
) -> None:
    """Allows another type of field value.

    `validate_fn` is called on values for which `match_fn` is true; it raises
    InvalidConfigValueError for an invalid one.
    """
    _validators[match_fn] = validate_fn


def validate_config_field_name(name: str) -> None:
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise InvalidConfigNameError(
            f'Invalid config field name "{name}": use lower-case letters, digits and underscores, '
            "and start with a letter."
        )


def validate_config_field_value(value: Any) -> None:
    """Raises InvalidConfigValueError unless `value` can be copied by value and printed as text.

    Every matching validator must accept the value.
    """
    validators = [validate for match, validate in _validators.items() if match(value)]
    if not validators:
        raise InvalidConfigValueError(
            f'Invalid config value type {type(value)} for value "{value}". '
            "Consider registering a custom validator with `register_validator`."
        )
    for validate in validators:
        validate(value)


def _validate_all(values: Iterable[Any]) -> None:
    for value in values:
        validate_config_field_value(value)


_FOREIGN_LEAVES = {("numpy", "dtype"), ("jax", "PartitionSpec"), ("jax", "P")}


def _is_leaf(value: Any) -> bool:
    leaves = (
        type(None),
        RequiredFieldValue,
        type,
        types.FunctionType,
        types.BuiltinFunctionType,
        types.MethodType,
        bool,
        int,
        float,
        str,
        range,
        enum.Enum,
    )
    # This file does not depend on NumPy or JAX, so it recognizes their types by name.
    return isinstance(value, leaves) or any(
        (cls.__module__.partition(".")[0], cls.__name__) in _FOREIGN_LEAVES
        for cls in type(value).__mro__
    )


def _is_instance_of(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: not isinstance(value, type) and test(value)


register_validator(match_fn=_is_leaf, validate_fn=lambda _: None)
register_validator(match_fn=lambda v: isinstance(v, (list, tuple)), validate_fn=_validate_all)
register_validator(
    match_fn=lambda v: isinstance(v, dict), validate_fn=lambda v: _validate_all(v.values())
)
register_validator(
    match_fn=_is_instance_of(dataclasses.is_dataclass),
    validate_fn=lambda v: _validate_all(getattr(v, field.name) for field in dataclasses.fields(v)),
)
register_validator(
    match_fn=_is_instance_of(is_attrs),
    # The values of a config were validated when they were assigned.
    validate_fn=lambda v: (
        None
        if isinstance(v, ConfigBase)
        else _validate_all(attrs.asdict(v, recurse=False).values())
    ),
)
# Configs of Hugging Face models.
register_validator(
    match_fn=_is_instance_of(lambda v: hasattr(v, "from_pretrained")),
    validate_fn=lambda v: validate_config_field_value(v.to_dict()),
)


@functools.cache
def _fields(cls: type) -> dict[str, attrs.Attribute]:
    return attrs.fields_dict(cls) if attrs.has(cls) else {}


def _children(key: str, value: Any) -> list[tuple[str, Any]] | None:
    """Returns the (path, value) pairs directly below `value`, or None for a leaf."""
    if isinstance(value, ConfigBase):
        return [(f"{key}.{k}" if key else k, v) for k, v in value.items()]
    if is_named_tuple(value):
        value = value._asdict()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    elif is_attrs(value) and not isinstance(value, type):
        value = attrs.asdict(value, recurse=False)
    if isinstance(value, dict):
        return [(f"{key}[{k!r}]", v) for k, v in value.items()]
    if isinstance(value, (list, tuple, range)):
        return [(f"{key}[{i}]", v) for i, v in enumerate(value)]
    return None


# The recursive functions below are not nested in methods, because a runtime type checker would wrap
# a nested function again at each call.


def _walk(
    key: str,
    value: Any,
    visit_fn: Callable[[str, Any], None],
    enter_fn: Callable[[str, Any, list | None], list | None] | None,
    exit_fn: Callable[[str, Any], None] | None,
) -> None:
    children = _children(key, value)
    if enter_fn is not None:
        children = enter_fn(key, value, children)
    if children is None:
        visit_fn(key, value)
        return
    for child_key, child in children:
        _walk(child_key, child, visit_fn, enter_fn, exit_fn)
    if exit_fn is not None:
        exit_fn(key, value)


def _flatten(key: str, value: Any, omit: Collection[Any], leaves: dict[str, Any]) -> None:
    """Adds the leaves of a value to `leaves`, except skipped fields and omitted defaults."""
    if isinstance(value, ConfigBase):
        # A config class may override `to_flat_dict`.
        inner = value.to_flat_dict(omit_default_values=omit)
        leaves.update({f"{key}.{name}": leaf for name, leaf in inner.items()})
        return
    children = _children(key, value)
    if children is None:
        leaves[key] = value
        return
    left_out = {f"{key}[{name!r}]" for name in _skipped(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        left_out |= {
            f"{key}[{field.name!r}]"
            for field in dataclasses.fields(value)
            if _is_omitted(getattr(value, field.name), field.default, omit)
        }
    for child_key, child in children:
        if child_key not in left_out:
            _flatten(child_key, child, omit, leaves)


def _is_omitted(value: Any, default: Any, omit: Collection[Any]) -> bool:
    return value is default and default in omit


def _text(value: Any) -> str:
    named = isinstance(value, (type, types.FunctionType, types.MethodType))
    return repr(_qualified_name(value) if named else value)


def _skipped(value: Any) -> set[str]:
    """Fields of a config, dataclass or attrs object that its metadata exclude from texts."""
    if isinstance(value, type):
        return set()
    if dataclasses.is_dataclass(value):
        fields: Iterable[Any] = dataclasses.fields(value)
    else:
        fields = _fields(type(value)).values()
    return {field.name for field in fields if field.metadata.get("skip_serialization")}


def _qualified_name(value: Any) -> str:
    return f"{value.__module__}.{value.__name__}"


def _without(values: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _plain(value: Any) -> Any:
    """Converts configs to dicts, and classes and functions to their names."""
    if isinstance(value, ConfigBase):
        return value.to_dict()
    if isinstance(value, (type, types.FunctionType)):
        return _qualified_name(value)
    if is_named_tuple(value):
        return _plain(value._asdict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(_without(dataclasses.asdict(value), _skipped(value)))
    if is_attrs(value):
        return _plain(_without(attrs.asdict(value, recurse=False), _skipped(value)))
    if isinstance(value, dict):
        # The constructor of a defaultdict takes a factory first.
        cls = dict if isinstance(value, defaultdict) else type(value)
        return cls({k: _plain(v) for k, v in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)([_plain(v) for v in value])
    if isinstance(value, range):
        return list(value)
    return value


class ConfigBase:
    """Named fields whose values are checked and copied on assignment."""

    # Fields that hold a class or a function by reference: proxies from decorators such as wrapt's
    # cannot be copied.
    __by_reference__ = frozenset()

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__()
        self.__attrs_init__(*args, **kwargs)
        allowed = _fields(type(self)).keys() | _allowed_attributes()
        for name in dir(type(self)):
            if not name.startswith("__") and name not in allowed:
                raise NonConfigFieldError(
                    f"Non-config attribute is not supported: {type(self)}.{name}"
                )

    def __attrs_init__(self, *args: Any, **kwargs: Any):
        raise MissingConfigClassDecoratorError(f"{type(self)} was not decorated with @config_class")

    def __setattr__(self, name: str, value: Any):
        # Python sets names such as `__orig_class__`.
        if not name.startswith("__"):
            if name not in _fields(type(self)):
                raise UnknownFieldError(self._unknown_field_message(name))
            validate_config_field_value(value)
            if name not in self.__by_reference__:
                value = copy.deepcopy(value)
        object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise _MissingAttributeError(self._unknown_field_message(name))

    def __deepcopy__(self: ConfigT, memo: dict[int, Any]) -> ConfigT:
        new = object.__new__(type(self))
        memo[id(self)] = new
        for name, value in self.__dict__.items():
            by_reference = name in self.__by_reference__
            new.__dict__[name] = value if by_reference else copy.deepcopy(value, memo)
        return new

    def __contains__(self, name: str) -> bool:
        return name in _fields(type(self))

    def __len__(self) -> int:
        return len(_fields(type(self)))

    def __str__(self) -> str:
        return self.debug_string()

    def __repr__(self) -> str:
        return self.debug_string(kv_separator=":", field_separator="; ")

    def keys(self) -> list[str]:
        return sorted(_fields(type(self)))

    def items(self) -> list[tuple[str, Any]]:
        """Returns (name, value) pairs sorted by name."""
        return [(name, getattr(self, name)) for name in self.keys()]

    def set(self: ConfigT, **kwargs: Any) -> ConfigT:
        for name, value in kwargs.items():
            setattr(self, name, value)
        return self

    def clone(self: ConfigT, **kwargs: Any) -> ConfigT:
        """Returns a copy with some fields changed."""
        return copy.deepcopy(self).set(**kwargs)

    def get_recursively(self, path: Sequence[str]) -> Any:
        """Returns the value at `path`, a sequence of field names; the config for an empty path."""
        value = self
        for name in path:
            value = getattr(value, name)
        return value

    def set_recursively(self, path: Sequence[str], *, value: Any) -> None:
        """Sets the field at `path`, a sequence of field names."""
        if not path:
            raise ValueError("Cannot set a value at an empty path: give at least one field name.")
        setattr(self.get_recursively(path[:-1]), path[-1], value)

    def visit(
        self,
        visit_fn: Callable[[str, Any], None],
        enter_fn: Callable[[str, Any, list | None], list | None] | None = None,
        exit_fn: Callable[[str, Any], None] | None = None,
    ) -> None:
        """Walks over this config and all values inside it.

        Paths are spelled `field.child` inside configs, `field[1]` inside lists, tuples and ranges,
        and `field['name']` inside dicts, dataclasses, attrs objects and named tuples.

        Args:
            visit_fn: Called with (path, value) on every leaf.
            enter_fn: Called with (path, value, children) on every value. `children` is the list of
                (path, value) pairs to walk over, or None for a leaf; the result replaces it.
            exit_fn: Called with (path, value) after the children of a value.
        """
        _walk("", self, visit_fn, enter_fn, exit_fn)

    def to_dict(self) -> dict[str, Any]:
        """Returns nested dicts of plain values; classes and functions become their names.

        Fields with `metadata={"skip_serialization": True}` are omitted, here and in texts.
        """
        return {name: _plain(x) for name, x in _without(dict(self.items()), _skipped(self)).items()}

    def to_flat_dict(self, *, omit_default_values: Collection[Any]) -> dict[str, Any]:
        """Returns a dict from path to leaf value.

        Args:
            omit_default_values: Omits fields that still have their default, if the default is one
                of these.
        """
        fields, omit = _fields(type(self)), omit_default_values
        leaves: dict[str, Any] = {}
        for name, value in _without(dict(self.items()), _skipped(self)).items():
            is_leaf = _children(name, value) is None
            if not (is_leaf and _is_omitted(value, fields[name].default, omit)):
                _flatten(name, value, omit, leaves)
        return leaves

    def debug_string(
        self,
        *,
        kv_separator: str = ": ",
        field_separator: str = "\n",
        omit_default_values: Collection[Any] = (None, REQUIRED),
    ) -> str:
        """Returns a `path: value` per leaf, in the order of `to_flat_dict`, as in golden files."""
        leaves = self.to_flat_dict(omit_default_values=omit_default_values)
        return field_separator.join(f"{k}{kv_separator}{_text(v)}" for k, v in leaves.items())

    def _unknown_field_message(self, name: str) -> str:
        similar = similar_names(name, self.keys())
        hint = f"did you mean: [{', '.join(similar)}]" if similar else f"keys are {self.keys()}"
        return f"{type(self).__name__} has no field {name} ({hint})"


def _named(cls: type[ConfigT], name: str) -> type[ConfigT]:
    for field in attrs.fields(cls):
        validate_config_field_name(field.name)
    cls.__name__ = cls.__qualname__ = name
    return cls


_ATTRS_OPTIONS: Any = {
    "init": False,
    "kw_only": True,
    "repr": False,
    "slots": False,
    "on_setattr": attrs.setters.NO_OP,
}


def derived(default: Any = REQUIRED) -> Any:
    """Declares a field that `resolve` or the constructor of the parent fills in.

    An experiment leaves it unset:

        input_dim: Required[int] = derived()
    """
    return attrs.field(default=default, metadata={_DERIVED: True})


def is_derived(cfg: ConfigBase, name: str) -> bool:
    return _DERIVED in _fields(type(cfg))[name].metadata


def fill(cfg: ConfigBase, name: str, value: Any) -> None:
    """Sets the field `name` of all configs inside `cfg` that have one and leave it None."""

    def enter(path: str, part: Any, children: list | None) -> list | None:
        if isinstance(part, ConfigBase) and name in part and getattr(part, name) is None:
            setattr(part, name, value.clone() if isinstance(value, ConfigBase) else value)
        return children

    cfg.visit(lambda path, part: None, enter)


def missing_fields(cfg: ConfigBase) -> list[str]:
    """Returns paths of the required fields in `cfg` that are neither set nor derived."""
    missing: list[str] = []

    def enter(path: str, value: Any, children: list | None) -> list | None:
        if isinstance(value, ConfigBase):
            missing.extend(
                f"{path}.{name}" if path else name
                for name, content in value.items()
                if content is REQUIRED and not is_derived(value, name)
            )
        return children

    cfg.visit(lambda path, value: None, enter)
    return missing


@dataclass_transform(kw_only_default=True, field_specifiers=(attrs.field, derived))
def config_class(cls: type[T], **kwargs: Any) -> type[T]:
    """Decorates a subclass of ConfigBase, whose annotated attributes become fields."""
    if not issubclass(cls, ConfigBase):
        raise InvalidConfigClassError(f"A config class must be a subclass of ConfigBase: {cls}")
    # An attribute without an annotation would silently not be a field. The qualified name of a
    # method shows whether it was defined in the class body or assigned there.
    annotations = cls.__dict__.get("__annotations__", {})
    for name, value in cls.__dict__.items():
        is_method = inspect.isfunction(value) and any(
            value.__qualname__ == f"{base.__qualname__}.{name}" for base in cls.__mro__
        )
        if not (name.startswith("__") or name in annotations or is_method):
            raise NonConfigFieldError(
                f"Non-config attribute is not supported: {cls.__qualname__}.{name}. "
                "Please make sure all config attributes are annotated with type hints."
            )
    name = f"config_class({cls.__module__}.{cls.__qualname__})"
    return _named(attrs.define(cls, **_ATTRS_OPTIONS, **kwargs), name)


class InstantiableConfig(Generic[T], ConfigBase):
    """A config that can be instantiated."""

    def instantiate(self, **kwargs: Any) -> T:
        raise NotImplementedError(type(self))


@functools.cache
def _allowed_attributes() -> frozenset[str]:
    return frozenset(dir(InstantiableConfig))


ConfigOr = Union[T, InstantiableConfig[T]]  # noqa: UP007


def field_annotation(cfg: ConfigBase, name: str) -> Any:
    """Returns the declared type of a field; Any if it is a name that cannot be resolved."""
    return _annotation(type(cfg), name)


def _annotation(cls: type, name: str) -> Any:
    annotation = _fields(cls)[name].type
    if not isinstance(annotation, str):
        return annotation
    try:
        return get_type_hints(cls, include_extras=True)[name]
    except NameError:
        return Any


def check_values(cfg: ConfigBase, name: str = "") -> None:
    """Checks all values inside `cfg` against the declared types of their fields.

    Assignment checks no types, as in AXLearn; call this on a whole config before its use. Defaults
    and the arguments of a configured function or class are not checked.

    Args:
        name: Prefix of the paths in errors.

    Raises:
        ValueError: Values have a wrong type or are out of range; the message lists all of them.
    """
    found: list[Complaint] = []

    def enter(path: str, value: Any, children: list | None) -> list | None:
        if isinstance(value, ConfigBase) and not isinstance(
            value, FunctionConfigBase | ClassConfigBase
        ):
            for field, content in value.items():
                if content is not _fields(type(value))[field].default:
                    prefix = ".".join(part for part in (name, path, field) if part)
                    found.extend(_complaints(prefix, value, field))
        return children

    cfg.visit(lambda path, value: None, enter)
    if found:
        raise ValueError("; ".join(map(str, found)))


def _check_ranges(cfg: ConfigBase) -> None:
    """Raises ValueError if a field of `cfg` itself is out of range."""
    limited = [
        name for name, _ in cfg.items() if any(map(has_limits, _annotations(type(cfg), name)))
    ]
    found = [complaint for name in limited for complaint in _complaints(name, cfg, name)]
    if found:
        raise ValueError("; ".join(map(str, found)))


def _complaints(path: str, cfg: ConfigBase, name: str) -> list[Complaint]:
    for annotation in _annotations(type(cfg), name):
        if found := list(complaints(path, getattr(cfg, name), annotation)):
            return found
    return []


@functools.cache
def _annotations(cls: type, name: str) -> list[Any]:
    """Returns the declared type of a field, and overridden declarations that have a range."""
    declared = [_annotation(base, name) for base in cls.__mro__ if name in _fields(base)]
    return declared[:1] + [each for each in declared[1:] if has_limits(each)]


def maybe_instantiate(x: ConfigOr[T], **kwargs: Any) -> T:
    """Instantiates `x` if it is a config, and returns any other value unchanged."""
    value: Any = x
    return value.instantiate(**kwargs) if isinstance(x, InstantiableConfig) else value


def maybe_set_config(cfg: ConfigT, **kwargs: Any) -> ConfigT:
    """Sets fields, and ignores those that `cfg` does not have."""
    for name, value in kwargs.items():
        if hasattr(cfg, name):
            setattr(cfg, name, value)
    return cfg


def _raise_if_required_fields_are_missing(cfg: ConfigBase, given: Collection[str] = ()) -> None:
    """Raises if a required field of `cfg` itself is unset.

    Fields of nested configs may be filled in by a constructor, so they are listed in the message
    but raise no error on their own.
    """
    required = []
    cfg.visit(
        lambda key, value: required.append(key) if isinstance(value, RequiredFieldValue) else None
    )
    missing = [key for key in required if key in cfg and key not in given]
    if not missing:
        return
    message = (
        f"Missing value for required field when instantiating {type(cfg).__name__}: "
        f"{', '.join(missing)}"
    )
    below = [key for key in required if key not in cfg]
    if below:
        message += f". Not set either, unless the constructor sets them: {', '.join(below)}"
    raise RequiredFieldMissingError(message)


def _raise_if_not_constructible(cls: type, kwargs: dict[str, Any]) -> None:
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
        raise ConstructionError(f"{cls.__name__} does not define {missing}")
    try:
        inspect.signature(cls.__init__).bind(None, None, **kwargs)
    except TypeError as error:
        arguments = ", ".join(("cfg", *(f"{name}=..." for name in kwargs)))
        raise ConstructionError(
            f"{cls.__name__}.__init__ is called as ({arguments}): {error}"
        ) from None


class Configurable:
    """Base of classes that are constructed from a nested `Config` class.

    Runtime objects (meshes, random keys, other parts) are passed to `instantiate` by name.
    """

    @config_class
    class Config(InstantiableConfig[C]):
        # Set by `default_config`.
        klass: type[C]

        def instantiate(self, **kwargs: Any) -> C:
            """Constructs the object from a copy of this config, which its constructor may edit."""
            _raise_if_required_fields_are_missing(self)
            try:
                _check_ranges(self)
            except ValueError as error:
                raise ValueError(f"{self.klass.__name__}: {error}") from None
            clashes = sorted(name for name in kwargs if name in self)
            if clashes:
                raise ValueError(
                    f"{', '.join(clashes)}: runtime argument of {self.klass.__name__} with the "
                    "name of a config field; set the field instead, or rename the argument"
                )
            _raise_if_not_constructible(self.klass, kwargs)
            return self.klass(copy.deepcopy(self), **kwargs)

    @classmethod
    def default_config(cls) -> Any:
        return cls.Config(klass=cls)

    def __init__(self, cfg: Any):
        self._config = copy.deepcopy(cfg)

    @property
    def config(self) -> Any:
        """Returns a copy of the config that this object was constructed from."""
        return copy.deepcopy(self._config)

    def __repr__(self) -> str:
        return repr(self._config)


class ConfigModifier(Configurable):
    """A configured function from config to config, for code written for AXLearn."""

    def __call__(self, cfg: InstantiableConfig[T]) -> InstantiableConfig[T]:
        return cfg


@config_class
class FunctionConfigBase(InstantiableConfig[T]):
    """Config of a call of `fn`; its fields are the parameters."""

    __by_reference__ = frozenset({"fn"})

    fn: Callable[..., T]

    def instantiate(self, **kwargs: Any) -> T:
        """Calls the function; `kwargs` take precedence over fields."""
        return _call(self.fn, inspect.signature(self.fn), self, kwargs)


@config_class
class ClassConfigBase(InstantiableConfig[T]):
    """Config of an object of `klass`; its fields are the parameters of the constructor."""

    __by_reference__ = frozenset({"klass"})

    klass: type[T]

    def instantiate(self, **kwargs: Any) -> T:
        """Constructs the object; `kwargs` take precedence over fields."""
        return _call(self.klass, inspect.signature(self.klass.__init__), self, kwargs)


def _call(
    fn: Callable[..., T], signature: inspect.Signature, cfg: ConfigBase, given: dict[str, Any]
) -> T:
    _raise_if_required_fields_are_missing(cfg, given)
    cfg = copy.deepcopy(cfg)
    args, kwargs = (), {}
    for name, parameter in signature.parameters.items():
        if name == "self":
            continue
        if parameter.kind == parameter.POSITIONAL_ONLY:
            raise NotImplementedError(
                f"Unsupported param kind {parameter.kind.name}: {name} of {fn}"
            )
        if parameter.kind == parameter.VAR_POSITIONAL:
            args = getattr(cfg, name)
        elif parameter.kind == parameter.VAR_KEYWORD:
            kwargs.update(getattr(cfg, name))
        else:
            kwargs[name] = getattr(cfg, name)
    return fn(*args, **(kwargs | given))


def _parameter_fields(
    signature: inspect.Signature, factories: dict[str, Callable[[], Any]]
) -> dict[str, Any]:
    fields = {}
    for name, parameter in signature.parameters.items():
        default = REQUIRED if parameter.default is parameter.empty else parameter.default
        if name in factories:
            default = factories[name]()
        if name != "self":
            fields[name] = attrs.field(default=default, type=parameter.annotation)
    return fields


def _default_factories(cls: type) -> dict[str, Callable[[], Any]]:
    """Returns default factories of a dataclass or attrs class, which the signature lacks."""
    if dataclasses.is_dataclass(cls):
        factories = {field.name: field.default_factory for field in dataclasses.fields(cls)}
        return {k: v for k, v in factories.items() if v is not dataclasses.MISSING}
    if is_attrs(cls):
        # A factory that takes the object cannot be called before there is one.
        return {
            field.alias: (lambda: REQUIRED) if field.default.takes_self else field.default.factory
            for field in attrs.fields(cls)
            if hasattr(field.default, "takes_self")
        }
    return {}


def config_for_function(fn: Callable[..., T]) -> Any:
    """Config of a call: `config_for_function(pow).set(base=2, exp=3).instantiate() == 8`."""
    signature = inspect.signature(fn)
    for name in ("fn", "_"):
        if name in signature.parameters:
            raise ValueError(f"Configured function {fn} should not have a '{name}' parameter.")
    fields = _parameter_fields(signature, {})
    cls = attrs.make_class("FunctionConfig", fields, bases=(FunctionConfigBase,), **_ATTRS_OPTIONS)
    return _named(cls, f"config_for_function({fn.__module__}.{fn.__qualname__})")(fn=fn)


def config_for_class(cls: type[T]) -> Any:
    """Makes a config of an object of any class, with the constructor's parameters as fields."""
    fields = _parameter_fields(inspect.signature(cls.__init__), _default_factories(cls))
    config_cls = attrs.make_class("ClassConfig", fields, bases=(ClassConfigBase,), **_ATTRS_OPTIONS)
    return _named(config_cls, f"config_for_class({cls.__module__}.{cls.__qualname__})")(klass=cls)
