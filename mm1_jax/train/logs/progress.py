"""Progress display: a bar on a terminal, otherwise a line every few seconds."""

import contextlib
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from tqdm import tqdm

from mm1_jax.config import Configurable, config_class
from mm1_jax.field_types import Positive

# Without a bar, these steps always print a line, to show early that training works.
_FIRST_STEPS = (1, 2, 5, 10)


def print_line(text: str) -> None:
    """Prints a line; if it cannot be written, as on a full disk, it stays in the buffer."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


class Progress(Configurable):
    """Shows loss, tokens/s, images/s and the remaining time."""

    @config_class
    class Config(Configurable.Config):
        # Seconds between lines if there is no terminal.
        every_n_seconds: Positive = 5.0

    def __init__(self, cfg: Config, *, max_steps: int, first_step: int, has_bar: bool = True):
        """`has_bar` allows a progress bar if stderr is a terminal."""
        super().__init__(cfg)
        self._every_n_seconds = cfg.every_n_seconds
        self._max_steps = max_steps
        self._first_step = first_step
        self._seconds = 0.0
        self._last_line = time.monotonic()
        self._bar = None
        if has_bar and sys.stderr.isatty():
            self._bar = tqdm(total=max_steps, initial=first_step, unit="step", dynamic_ncols=True)

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows a completed step from its record in `metrics.jsonl`."""
        self._seconds += metrics["step_seconds"]
        chance = metrics.get("chance_loss")
        of_chance = "" if chance is None else f" (chance {chance:.4f})"
        text = {
            "loss": f"{metrics['loss']:.4f}{of_chance}",
            "tokens/s": f"{metrics['tokens_per_second']:,.0f}",
            "images/s": f"{metrics['images_per_second']:,.0f}",
        }
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix(text)
            return
        now = time.monotonic()
        number = step - self._first_step
        is_due = now - self._last_line >= self._every_n_seconds
        if is_due or number in _FIRST_STEPS or step == self._max_steps:
            self._last_line = now
            remaining = self._seconds / number * (self._max_steps - step)
            values = "  ".join(f"{name} {value}" for name, value in text.items())
            eta = timedelta(seconds=round(remaining))
            self.message(f"step {step}/{self._max_steps}  {values}  remaining {eta}")

    def message(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.write(text)
        else:
            print_line(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
