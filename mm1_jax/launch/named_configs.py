"""Experiments by name: a module has `named_configs() -> {name: function that makes the config}`.

Modules are found by their names when they are asked for: this package imports none of them.
"""

import functools
import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mm1_jax import config
from mm1_jax.config import (
    InstantiableConfig,
    InvalidConfigValueError,
    UnknownFieldError,
    close_names,
)

EXPERIMENTS = "experiments"
_INSTALLED = "site-packages"


@dataclass(frozen=True)
class NamedConfig:
    """A config that can be launched: where it is, and the function that makes it."""

    name: str
    module: str
    make: Any  # whatever the module has there; checked when it is called

    def __call__(self) -> Any:
        """The config, before overrides.

        Raises:
            ValueError: The function makes something else.
        """
        where = f"--config={self.name}: {self.module}.named_configs()[{self.name!r}]"
        if isinstance(self.make, InstantiableConfig):
            raise ValueError(
                f"{where} is a config, expected a function that makes one, without arguments"
            )
        if not callable(self.make):
            raise ValueError(f"{where} is {self.make!r}, expected a function that makes a config")
        if _needs_arguments(self.make):
            raise ValueError(f"{where} needs arguments; give them by functools.partial")
        try:
            cfg = self.make()
        except (UnknownFieldError, InvalidConfigValueError) as error:
            calls = traceback.extract_tb(error.__traceback__)
            # Code that a type checker generates has no file.
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
        """The first line of the docstring of the function."""
        make = self.make
        while isinstance(make, functools.partial):
            make = make.func
        return (inspect.getdoc(make) or "").partition("\n")[0]


def named_configs(module: str | None = None) -> dict[str, NamedConfig]:
    """All named configs of one module, or of all modules of the `experiments` package."""
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
                    "rename one, or say which by --module"
                )
            found[name] = NamedConfig(name, each.__name__, make)
    return found


def find_named_config(name: str, module: str | None = None) -> NamedConfig:
    configs = named_configs(module)
    if name not in configs:
        close = close_names(name, configs)
        hint = f"did you mean {' or '.join(close)}?" if close else "--list describes them."
        known = ", ".join(sorted(configs)) or "none"
        raise ValueError(f"--config={name}: there is no such config; {hint} Known: {known}")
    return configs[name]


def _needs_arguments(make: Callable) -> bool:
    parameters = inspect.signature(make).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(p.default is p.empty and p.kind not in variadic for p in parameters)


def import_module(name: str, option: str) -> ModuleType:
    """The module of a command line, of the current folder or of where Python finds any other.

    Scripts would otherwise look into the folder that they are in, and not into the current one as
    `python -m` does.

    Raises:
        ValueError: There is none.
    """
    experiments = _own_experiments()
    folder = os.getcwd()
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"{option}={name}: expected a module as `import` names it, {_spelt(name)}")
    try:
        return importlib.import_module(name)
    except SystemExit as end:
        raise ValueError(
            f"{option}={name}: its import ends the process, by sys.exit({end.code!r}); a module of "
            'configs does so under `if __name__ == "__main__"` alone'
        ) from end
    except ModuleNotFoundError as error:
        # A module that exists and misses something itself is a different error.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        hint = f"no such file is in {folder}, nor on PYTHONPATH"
        if name.startswith(f"{EXPERIMENTS}."):
            hint = f"the package is {experiments}; give a folder of your own another name"
        raise ValueError(f"{option}={name}: cannot import {error.name!r}: {hint}") from error


def _experiments() -> list[ModuleType]:
    folder, other = _own_experiments(), Path(EXPERIMENTS)
    if (other / "__init__.py").exists() and other.resolve() != folder:
        print(
            f"note: ./{other} is not read, but {folder} is; --module names others", file=sys.stderr
        )
    names = sorted(info.name for info in pkgutil.iter_modules([str(folder)]))
    return [import_module(f"{EXPERIMENTS}.{name}", "--config") for name in names]


def _own_experiments() -> Path:
    """The folder of the package that came with this one, which is imported under its name.

    Another folder of that name, in the current one for instance, does not take its place.
    """
    folder = Path(__file__).resolve().parents[2] / EXPERIMENTS
    if EXPERIMENTS not in sys.modules:
        spec = importlib.machinery.PathFinder.find_spec(EXPERIMENTS, [str(folder.parent)])
        if spec is not None and spec.loader is not None:
            package = importlib.util.module_from_spec(spec)
            sys.modules[EXPERIMENTS] = package
            spec.loader.exec_module(package)
    return folder


def _spelt(name: str) -> str:
    """The name of a file as that of a module: `./my/mod.py` is `my.mod`."""
    parts = [part for part in name.removesuffix(".py").split("/") if part not in ("", ".")]
    return ".".join(parts) or "my.module"
