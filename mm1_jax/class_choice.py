"""The classes that a config field can hold, by name: `--config.model.connector=AveragePooling`.

A field whose type is the config of one class takes that class and its subclasses. A field whose
type admits any config takes the relatives of the class that it holds: the subclasses of their
common base, or the classes beside it in its file whose objects are called in the same way.
"""

import contextlib
import functools
import importlib
import inspect
import pkgutil
import sys
import types
import typing
from dataclasses import dataclass
from typing import Any

from mm1_jax.config import (
    REQUIRED,
    ClassConfigBase,
    ConfigBase,
    Configurable,
    FunctionConfigBase,
    InstantiableConfig,
    close_names,
    field_annotation,
)
from mm1_jax.field_types import alternative_types, class_name

_PACKAGE = __name__.partition(".")[0]
# Types of fields that admit the config of any class.
_BROAD = (ConfigBase, InstantiableConfig, Configurable.Config, FunctionConfigBase, ClassConfigBase)


@dataclass(frozen=True)
class Choice:
    """Config of a chosen class, with the fields that it keeps and drops of the former config.

    Attributes:
        kept: Fields whose values were carried over.
        dropped: Fields that had been set and that the new class has no place for.
    """

    cfg: Any
    kept: dict[str, Any]
    dropped: dict[str, Any]

    def __str__(self) -> str:
        said = []
        for verb, fields in (("keeps", self.kept), ("drops", self.dropped)):
            if fields:
                values = (f"{name}={_brief(value)}" for name, value in sorted(fields.items()))
                said.append(f"{verb} {', '.join(values)}")
        return "; ".join(said) or "has its defaults"


def config_classes(annotation: Any) -> list[type[ConfigBase]]:
    """Returns the config classes among the alternatives of a field's type."""
    classes = [typing.get_origin(each) or each for each in alternative_types(annotation)]
    return [each for each in classes if isinstance(each, type) and issubclass(each, ConfigBase)]


def _narrow(annotation: Any) -> list[type[ConfigBase]]:
    """Returns the config classes of a field's type that do not admit the config of any class."""
    return [each for each in config_classes(annotation) if each not in _BROAD]


def owner(config_cls: type[ConfigBase]) -> Any:
    """Returns the class around a nested config class: Connector for Connector.Config."""
    # Config classes are called `config_class(module.Connector.Config)`.
    _, _, name = config_cls.__name__.partition(f"({config_cls.__module__}.")
    *outer, last = name.rstrip(")").split(".")
    found: Any = sys.modules.get(config_cls.__module__)
    for part in outer:
        found = getattr(found, part, None)
    return found if outer and last == "Config" and isinstance(found, type) else None


def family(annotation: Any, present: Any) -> dict[str, Any]:
    """Returns the classes that a field can hold, by name.

    Args:
        annotation: The type of the field.
        present: The value of the field, which decides if the type admits any config.
    """
    narrow = _narrow(annotation)
    if narrow:
        bases = [base for each in narrow if (base := owner(each)) is not None]
        found = [each for base in bases for each in _concrete(base)]
        found = [x for x in found if issubclass(_config_class(x), tuple(narrow))]
    else:
        klass = getattr(present, "klass", None) if isinstance(present, ConfigBase) else None
        if not (isinstance(klass, type) and issubclass(klass, Configurable)):
            return {}
        found = _concrete(_base(klass))
        if found == [klass]:
            found = _siblings(klass)
    return {each.__name__: each for each in sorted(found, key=lambda each: each.__name__)}


def default_child(annotation: Any, where: str) -> Any:
    """Returns the default config of an unset field, for fields inside it to be set.

    Raises:
        ValueError: The type of the field admits several classes.
    """
    narrow = _narrow(annotation)
    if len(narrow) == 1:
        base = owner(narrow[0])
        if base is None:
            return narrow[0]()
        known = family(annotation, None)
        if base in known.values() or len(known) == 1:
            return (base if base in known.values() else next(iter(known.values()))).default_config()
        expected = f", one of {', '.join(known)}"
    else:
        expected = ""
    raise ValueError(
        f"{where} is not set; choose its class first, --config.{where}=CLASS{expected}"
    )


def choose_class(name: str, annotation: Any, present: Any) -> Choice:
    """Makes the config of the class `name` for a field, and keeps fields of its present config.

    A field is kept where it differs from its default in the present class, and the new class has a
    field of that name and type.

    Raises:
        ValueError: The field does not admit the class; the message lists those that it does.
    """
    known = family(annotation, present)
    klass = known.get(name) or _loaded(name, annotation, anywhere=not known)
    if klass is None:
        if not known:
            raise ValueError(f"there is no class {name!r} among those that are loaded")
        close = close_names(name, known)
        hint = f" (did you mean {' or '.join(close)}?)" if close else ""
        expected = f"one of {', '.join(known)}" if len(known) > 1 else next(iter(known))
        raise ValueError(f"its class can be {expected}, and not {name!r}{hint}")
    if getattr(present, "klass", None) is klass:
        return Choice(present.clone(), {}, {})
    new = klass.default_config()
    kept: dict[str, Any] = {}
    dropped: dict[str, Any] = {}
    for field, value in _chosen(present).items():
        fits = field in new and field_annotation(new, field) == field_annotation(present, field)
        (kept if fits else dropped)[field] = value
    return Choice(new.set(**kept), kept, dropped)


def _chosen(cfg: Any) -> dict[str, Any]:
    """Returns the fields of a config that differ from the defaults of its class."""
    klass = getattr(cfg, "klass", None)
    if not (isinstance(klass, type) and issubclass(klass, Configurable)):
        return {}
    default = klass.default_config()
    return {name: value for name, value in cfg.items() if value != getattr(default, name)}


def _config_class(klass: Any) -> type[ConfigBase]:
    return type(klass.default_config())


def _concrete(base: Any) -> list[Any]:
    """Returns the constructible ones of a class and its subclasses; imports its package first."""
    _import_siblings(base.__module__)
    return [each for each in _subclasses(base) if _is_concrete(each)]


def _is_concrete(klass: Any) -> bool:
    # A file `base.py` holds the interface of a family, which may be no abstract class.
    is_interface = klass.__module__.endswith(".base") and bool(klass.__subclasses__())
    return not (inspect.isabstract(klass) or klass.__name__.startswith("_") or is_interface)


def _subclasses(base: Any) -> list[Any]:
    """Returns the class and all loaded classes that derive from it."""
    found = [base]
    for each in found:
        found += [x for x in each.__subclasses__() if x not in found]
    return found


@functools.cache
def _import_siblings(module: str) -> None:
    """Imports the modules beside a module of this package, so that their classes are known."""
    package = sys.modules.get(module.rpartition(".")[0])
    if package is None or not package.__name__.startswith(f"{_PACKAGE}."):
        return
    for info in pkgutil.iter_modules(package.__path__):
        if not info.name.startswith("_"):
            # An optional library may be missing.
            with contextlib.suppress(ImportError):
                importlib.import_module(f"{package.__name__}.{info.name}")


def _base(klass: Any) -> Any:
    """Returns the topmost base of a class that is abstract or adds config fields."""
    bases = [each for each in klass.__mro__ if issubclass(each, Configurable)]
    families = [
        each
        for each in bases
        if each is not Configurable and (inspect.isabstract(each) or len(each.default_config()) > 1)
    ]
    return families[-1] if families else klass


def _siblings(klass: Any) -> list[Any]:
    """Returns classes of the same file and bases whose objects are called in the same way."""
    beside = vars(sys.modules[klass.__module__]).values()
    return [
        each
        for each in beside
        if isinstance(each, type)
        and issubclass(each, Configurable)
        and each.__module__ == klass.__module__
        and each.__bases__ == klass.__bases__
        and _call_arguments(each) == _call_arguments(klass)
        and _is_concrete(each)
    ]


def _call_arguments(klass: Any) -> list[str]:
    call = getattr(klass, "__call__", None)  # noqa: B004
    return list(inspect.signature(call).parameters) if inspect.isfunction(call) else []


def _loaded(name: str, annotation: Any, *, anywhere: bool) -> Any:
    """Finds a loaded class by its import path, or also by its bare name from `anywhere`."""
    narrow = tuple(_narrow(annotation))
    found = [
        each
        for each in _subclasses(Configurable)
        if _is_concrete(each)
        and (f"{each.__module__}.{each.__name__}" == name or (anywhere and each.__name__ == name))
        and (not narrow or issubclass(_config_class(each), narrow))
    ]
    return found[0] if len(found) == 1 else None


def _brief(value: Any) -> str:
    if isinstance(value, ConfigBase):
        return class_name(type(value))
    if isinstance(value, type | types.FunctionType):
        return value.__name__
    return "REQUIRED" if value is REQUIRED else repr(value)
