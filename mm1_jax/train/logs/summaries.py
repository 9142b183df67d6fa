"""TensorBoard summaries: metrics of a run, and held-out images with the model's answers."""

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mm1_jax.train.logs.sample_pictures import choose_samples, sample_grid

NUM_PICTURES = 16


class Summaries:
    """Writes event files; events of earlier launches after `first_step` are purged."""

    def __init__(self, directory: Path, *, first_step: int):
        with _unavailable("torch"):
            writer = importlib.import_module("tensorboardX").SummaryWriter
        self._writer = writer(str(directory), purge_step=first_step + 1)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes numbers under their names; a list becomes one number per item."""
        for name, value in flat(values):
            self._writer.add_scalar(name, value, step)

    def samples(self, step: int, name: str, samples: Sequence[Any]) -> None:
        """Writes a grid of images with the model's answers."""
        chosen = choose_samples(samples, NUM_PICTURES)
        if chosen:
            self._writer.add_image(f"samples/{name}", sample_grid(chosen), step, dataformats="HWC")

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def flat(values: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Yields the numbers, with list items as `name/index`; other values are skipped."""
    for name, value in values.items():
        if isinstance(value, list):
            yield from flat({f"{name}/{i}": item for i, item in enumerate(value)})
        elif isinstance(value, (int, float)):
            yield name, value


@contextlib.contextmanager
def _unavailable(module: str) -> Iterator[None]:
    """Makes the import of a module fail, unless it was imported before.

    tensorboardX imports torch where it is installed, which takes seconds, and works without it.
    """
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
