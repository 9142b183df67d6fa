"""A launch: the named config or config file of a command line, and what it changes in it."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mm1_jax.config_file import ConfigFile, config_of
from mm1_jax.launch.named_configs import find_named_config, used_by_named_configs
from mm1_jax.overrides import apply_overrides, restore_values
from mm1_jax.stored_config import Fields


@dataclass(frozen=True)
class Launch:
    """The parts of a command line that determine a config.

    Attributes:
        config: The named config.
        module: The module that holds it.
        overrides: Values as text, by path.
        file: Content of a `ConfigFile` that stands in place of the named config.
        small: The config is made small before the overrides (`Experiment.small`).
    """

    config: str
    module: str | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    file: Mapping[str, Any] | None = None
    small: bool = False

    @property
    def name(self) -> str:
        """Returns the name of the config, with a suffix for its small version."""
        return f"{self.config}_small" if self.small else self.config

    def resolved_config(
        self, stored: Fields | None = None, *, note: Callable[[str], None] | None = None
    ) -> Any:
        """Makes the config, applies the overrides, and fills in what must agree.

        Args:
            stored: Values that a run keeps, by path.
            note: Called with a line for each change that the command line does not spell out.
        """
        cfg = self.written_config(note=note)
        return cfg.klass.resolve(restore_values(cfg, stored) if stored else cfg)

    def written_config(self, *, note: Callable[[str], None] | None = None) -> Any:
        """Returns the config with its overrides, before `resolve`: derived fields are unset.

        Args:
            note: As for `resolved_config`.
        """
        note = note or _ignore
        cfg = self._named_config()
        if self.small:
            cfg = _made_small(self.config, cfg, note)
        if not self.overrides:
            return cfg
        try:
            types_from = cfg.klass.resolve(cfg)
        except ValueError:
            # Overrides may fix what is missing or does not fit.
            types_from = cfg
        # Overrides are applied before `resolve`, so that values derived from them follow.
        return apply_overrides(cfg, self.overrides, types_from=types_from, note=note)

    def _named_config(self) -> Any:
        if self.file is None:
            return find_named_config(self.config, self.module)()
        file = ConfigFile(**self.file)

        @functools.cache
        def lookup(name: str) -> Any:
            return used_by_named_configs(name, file.config, self.module)

        return config_of(file, lookup)


def _ignore(line: str) -> None:
    pass


def _made_small(name: str, cfg: Any, note: Callable[[str], None]) -> Any:
    make_small = getattr(cfg.klass, "small", None)
    if make_small is None:
        raise ValueError(f"--small: {cfg.klass.__name__} of --config={name} has no small version")
    return make_small(cfg, note)
