"""Logging to Weights & Biases (`pip install mm1_jax[wandb]`).

    cfg.trainer.wandb = WandbRun.default_config().set(project="mm1")

It receives everything that TensorBoard gets. Launches into the same output folder form one run,
whose id is stored in the folder. If a step is repeated after a restart, the service keeps its first
values.
"""

import importlib
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mm1_jax.config import Configurable, config_class
from mm1_jax.field_types import NonEmpty
from mm1_jax.storage import write_whole
from mm1_jax.train.logs.sample_pictures import choose_samples, sample_grid
from mm1_jax.train.logs.summaries import NUM_PICTURES, flat

_ID = "wandb_id.txt"


class WandbRun(Configurable):
    """Counterpart of `summaries.Summaries` for Weights & Biases."""

    @config_class
    class Config(Configurable.Config):
        project: NonEmpty = "mm1_jax"
        entity: str | None = None
        # Defaults to the name of the output folder.
        name: str | None = None
        # "offline" writes to the output folder, for `wandb sync`.
        mode: Literal["online", "offline"] = "online"

    def __init__(self, cfg: Config, *, output_dir: Path, description: Mapping[str, Any]):
        """Starts or resumes the run.

        Args:
            description: Config fields of the run, for the table of runs.

        Raises:
            ValueError: The package is not installed, or the service rejects the run.
        """
        super().__init__(cfg)
        try:
            self._wandb: Any = importlib.import_module("wandb")
        except ModuleNotFoundError:
            raise ValueError(
                "trainer.wandb needs a package that is not installed: pip install mm1_jax[wandb]"
            ) from None
        try:
            self._run = self._wandb.init(
                project=cfg.project,
                entity=cfg.entity,
                name=cfg.name or output_dir.absolute().name,
                id=_run_id(output_dir),
                resume="allow",
                mode=cfg.mode,
                dir=str(output_dir),
                config=dict(description),
                settings=self._wandb.Settings(silent=True),
            )
        except self._wandb.errors.Error as error:
            raise ValueError(
                f"trainer.wandb: cannot start the run: {error} "
                "(trainer.wandb.mode=offline needs no account)"
            ) from error

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Logs numbers under their names; a list becomes one number per item."""
        self._run.log(dict(flat(values)), step=step)

    def samples(self, step: int, name: str, samples: Sequence[Any]) -> None:
        """Logs a grid of images with the model's answers."""
        chosen = choose_samples(samples, NUM_PICTURES)
        if chosen:
            picture = self._wandb.Image(sample_grid(chosen))
            self._run.log({f"samples/{name}": picture}, step=step)

    def flush(self) -> None:
        """Does nothing, because wandb sends data from its own process as it arrives."""

    def close(self) -> None:
        self._run.finish()


def _run_id(output_dir: Path) -> str:
    path = output_dir / _ID
    if not path.exists():
        output_dir.mkdir(parents=True, exist_ok=True)
        write_whole(path, secrets.token_hex(4) + "\n")
    return path.read_text().strip()
