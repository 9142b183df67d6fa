"""Profiling of a few steps, for XProf, TensorBoard and Perfetto.

    trainer.profile.first_step=100 trainer.profile.num_steps=3

records steps 101 to 103 of each host in profile/. View it with `tensorboard --logdir` and the XProf
plugin, or open profile/plugins/profile/*/perfetto_trace.json.gz in ui.perfetto.dev.
"""

from pathlib import Path
from typing import Any

import jax

from mm1_jax.config import Configurable, config_class
from mm1_jax.field_types import NonNegativeInt, PositiveInt


class Profile(Configurable):
    """Starts and stops the JAX profiler between steps."""

    @config_class
    class Config(Configurable.Config):
        # Profiling starts after this many steps; None disables it.
        first_step: NonNegativeInt | None = None
        num_steps: PositiveInt = 3

    def __init__(self, cfg: Config, *, directory: Path):
        super().__init__(cfg)
        self._directory = directory
        self._is_on = False

    def before(self, step: int) -> None:
        """Called before each step is dispatched; `step` steps have been dispatched."""
        if step == self._config.first_step:
            jax.profiler.start_trace(str(self._directory), create_perfetto_trace=True)
            self._is_on = True

    def after(self, step: int, metrics: Any) -> None:
        """Called after step `step` is dispatched; waits for the last profiled step."""
        if self._is_on and step >= self._config.first_step + self._config.num_steps:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        if self._is_on:
            self._is_on = False
            jax.profiler.stop_trace()
