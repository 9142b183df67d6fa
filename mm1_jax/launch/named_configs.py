"""Finds experiments by name: a module defines `named_configs() -> {name: function}`.

The function makes the config. Modules are imported by name: those of the package `experiments`,
which may be in several folders (`experiment_folders`), or any other module.
"""

import contextlib
import functools
import importlib
import inspect
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from mm1_jax import config
from mm1_jax.config import (
    InstantiableConfig,
    InvalidConfigValueError,
    UnknownFieldError,
    close_names,
)
from mm1_jax.experiment_folders import EXPERIMENTS, SHIPPED, experiment_folders
from mm1_jax.launch.names_in_files import read_names

_DEFINITION = re.compile(rb"^\s*(def\s+named_configs\b|named_configs\s*[:=])", re.MULTILINE)
_INSTALLED = "site-packages"


@dataclass(frozen=True)
class NamedConfig:
    """A config that can be launched: its name, its module, and the function that makes it."""

    name: str
    module: str
    make: Any  # checked when it is called

    def __call__(self) -> Any:
        """Makes the config, without overrides.

        Raises:
            ValueError: `make` does not return the config of an experiment.
        """
        where = f"--config={self.name}: {self.module}.named_configs()[{self.name!r}]"
        if isinstance(self.make, InstantiableConfig):
            raise ValueError(
                f"{where} is a config, expected a function that makes one, without arguments"
            )
        if not callable(self.make):
            raise ValueError(f"{where} is {self.make!r}, expected a function that makes a config")
        if _needs_arguments(self.make):
            raise ValueError(f"{where} needs arguments; bind them with functools.partial")
        try:
            cfg = self.make()
        except (UnknownFieldError, InvalidConfigValueError) as error:
            calls = traceback.extract_tb(error.__traceback__)
            # Code that a type checker generates has no file name.
            own = [
                x
                for x in calls
                if x.filename != config.__file__
                and _INSTALLED not in x.filename
                and not x.filename.startswith("<")
            ]
            line = (own or calls)[-1]
            raise ValueError(f"{where}, {line.filename}:{line.lineno}: {error}") from error
        if isinstance(cfg, InstantiableConfig) and hasattr(getattr(cfg, "klass", None), "resolve"):
            return cfg
        if cfg is None:
            found = "None; does the function lack its last line, `return cfg`?"
        elif isinstance(cfg, InstantiableConfig):
            found = f"a config of {getattr(cfg, 'klass', type(cfg)).__name__}"
        else:
            found = f"the class {cfg.__name__}" if isinstance(cfg, type) else f"{cfg!r}"
        raise ValueError(f"{where} returned {found}; expected an Experiment.Config")

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        make = self.make
        while isinstance(make, functools.partial):
            make = make.func
        return (inspect.getdoc(make) or "").partition("\n")[0]

    @property
    def description(self) -> str:
        """The summary, and the module's file if it is the user's own one of `experiments`."""
        file = getattr(sys.modules.get(self.module), "__file__", None)
        if file is None or not self.module.startswith(f"{EXPERIMENTS}."):
            return self.summary
        return _described(self.summary, Path(file))


def named_configs(module: str | None = None) -> dict[str, NamedConfig]:
    """Returns the named configs of one module, or of all modules of the package `experiments`."""
    modules = _experiments() if module is None else [import_module(module, "--module")]
    found: dict[str, NamedConfig] = {}
    for each in modules:
        if module is not None and not hasattr(each, "named_configs"):
            raise ValueError(
                f"--module={module}: it has no function named_configs(); "
                "give a module that maps names to functions that make configs"
            )
        configs = each.named_configs() if hasattr(each, "named_configs") else {}
        if not isinstance(configs, Mapping):
            raise ValueError(
                f"{each.__name__}.named_configs() returned {configs!r}; expected a dict from names "
                "to functions that make configs"
            )
        for name, make in configs.items():
            if name in found:
                raise ValueError(
                    f"Two configs are named {name!r}, in {found[name].module} and {each.__name__}: "
                    "rename one, or choose one with --module"
                )
            found[name] = NamedConfig(name, each.__name__, make)
    return found


def described_configs(module: str | None = None) -> dict[str, str]:
    """Returns a line for each named config: its summary, and its file if that is the user's own.

    Modules of the package `experiments` are imported only if their names cannot be read from their
    files.

    Args:
        module: A module that is imported; None for the package `experiments`.
    """
    if module is not None:
        return {name: each.description for name, each in named_configs(module).items()}
    found: dict[str, str] = {}
    for name, file in _files()[0].items():
        summaries = read_names(file)
        if summaries is None:
            described = described_configs(f"{EXPERIMENTS}.{name}")
        else:
            described = {name: _described(text, file) for name, text in summaries.items()}
        if found.keys() & described.keys():
            # Importing all of them raises an error that names both modules.
            named_configs()
        found |= described
    return found


def find_named_config(name: str, module: str | None = None) -> NamedConfig:
    configs = named_configs(module)
    if name not in configs:
        close = close_names(name, configs)
        hint = f"did you mean {' or '.join(close)}?" if close else "--list describes them."
        known = ", ".join(sorted(configs)) or "none"
        raise ValueError(f"--config={name}: there is no such config; {hint} Known: {known}")
    return configs[name]


def used_by_named_configs(path: str, first: str, module: str | None = None) -> Any:
    """Finds a class or function among the values of named configs, by its import path.

    Args:
        path: Such as "mm1_jax.data.corpora.captions.caption_document".
        first: The config to look into before the others.
        module: Their module, besides those of `experiments`.

    Raises:
        LookupError: No named config uses it; the arguments are a message and the known paths.
    """
    known: dict[str, Any] = {}

    def collect(_: str, value: Any) -> None:
        if isinstance(value, type | FunctionType):
            known[f"{value.__module__}.{value.__name__}"] = value

    for where in dict.fromkeys((module, None)):
        configs = named_configs(where)
        for name in sorted(configs, key=lambda name: (name != first, name)):
            # A config that cannot be made uses nothing.
            with contextlib.suppress(ValueError):
                configs[name]().visit(collect)
            if path in known:
                return known[path]
    raise LookupError("no named config uses it", *known)


def _needs_arguments(make: Callable) -> bool:
    parameters = inspect.signature(make).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(p.default is p.empty and p.kind not in variadic for p in parameters)


def import_module(name: str, option: str) -> ModuleType:
    """Imports a module that the user names, from the current folder or from Python's path.

    The current folder comes first, as with `python -m`; a script would search its own folder
    instead.

    Raises:
        ValueError: There is no such module.
    """
    folder = _current_folder_first()
    if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"{option}={name}: expected a module as `import` names it, {_spelt(name)}")
    try:
        return importlib.import_module(name)
    except SystemExit as end:
        raise ValueError(
            f"{option}={name}: its import calls sys.exit({end.code!r}); call it only under "
            '`if __name__ == "__main__"`'
        ) from end
    except ModuleNotFoundError as error:
        # The module exists, and one that it imports does not: an error of its own.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        hint = f"no such file is in {folder}, nor on PYTHONPATH"
        if name.startswith(f"{EXPERIMENTS}."):
            folders = " nor in ".join(map(_shown, experiment_folders()))
            hint = f"no such module is in {folders}; give the command in the folder that has it"
        raise ValueError(f"{option}={name}: cannot import {error.name!r}: {hint}") from error


def _experiments() -> list[ModuleType]:
    """Imports the modules of the package `experiments` that have named configs."""
    files, notes = _files()
    found = []
    for name, file in files.items():
        try:
            found.append(import_module(f"{EXPERIMENTS}.{name}", "--config"))
        except ImportError as error:
            if not (_is_shipped(file) and notes):
                raise
            raise ValueError(
                f"{EXPERIMENTS}.{name} cannot be imported ({error}); {'; '.join(notes)}; give your "
                "module another name"
            ) from error
    return found


def _files() -> tuple[dict[str, Path], list[str]]:
    """Returns the files of modules that may have named configs, and notes, which it prints.

    Modules without configs, such as scripts, are left out.
    """
    _current_folder_first()
    folders: dict[str, str] = {}
    replaced: dict[str, list[str]] = {}
    for folder in experiment_folders():
        for info in pkgutil.iter_modules([folder]):
            if folders.setdefault(info.name, folder) != folder and folder == SHIPPED:
                replaced.setdefault(folders[info.name], []).append(info.name)
    notes = [
        f"{_shown(folder)} has {', '.join(sorted(names))}, read in place of the shipped "
        f"module{'s' * (len(names) > 1)} of that name"
        for folder, names in replaced.items()
    ]
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    files = {name: _file(Path(folder, name)) for name, folder in sorted(folders.items())}
    return {name: file for name, file in files.items() if _defines_configs(file)}, notes


def _file(module: Path) -> Path:
    return module / "__init__.py" if module.is_dir() else module.with_name(f"{module.name}.py")


def _defines_configs(file: Path) -> bool:
    try:
        return _DEFINITION.search(file.read_bytes()) is not None
    except OSError:
        # Not a Python source file.
        return True


def _is_shipped(file: Path) -> bool:
    return Path(SHIPPED) in file.parents


def _current_folder_first() -> str:
    """Puts the current folder first on Python's path, and updates the path of `experiments`."""
    folder = os.getcwd()
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    if package := sys.modules.get(EXPERIMENTS):
        folders = experiment_folders()
        package.__path__ = [*folders, *(each for each in package.__path__ if each not in folders)]
    return folder


def _described(summary: str, file: Path) -> str:
    return summary if _is_shipped(file) else f"{summary} ({_shown(str(file))})".strip()


def _shown(path: str) -> str:
    """Returns a path for messages: relative if it is in the current folder."""
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else os.path.join(os.curdir, relative)


def _spelt(name: str) -> str:
    """Returns the module name of a file: `./my/mod.py` is `my.mod`."""
    parts = [part for part in name.removesuffix(".py").split("/") if part not in ("", ".")]
    return ".".join(parts) or "my.module"
