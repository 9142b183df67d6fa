"""Checkpoints of a run: training state and data state, written together by orbax in the background.

A step's folder gets its name only when both are complete, so what a killed process leaves half
written is never taken for a checkpoint, and is removed at the next start.
"""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from mm1_jax.config import Configurable, config_class
from mm1_jax.train.train_state import TrainState


class Checkpointer(Configurable):
    """Saves every n steps, keeps the last few, restores the newest."""

    @config_class
    class Config(Configurable.Config):
        every_n_steps: int = 1000
        keep_last: int = 3

    def __init__(self, cfg: Config, *, directory: Path, read_only: bool = False):
        super().__init__(cfg)
        for name in ("every_n_steps", "keep_last"):
            if getattr(cfg, name) < 1:
                raise ValueError(f"checkpointer.{name}={getattr(cfg, name)}: expected at least 1")
        self._every_n_steps = cfg.every_n_steps
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=None if read_only else cfg.keep_last,
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                read_only=read_only,
            ),
            item_handlers={
                # Restores any subtree, which the standard handler does not.
                "state": ocp.PyTreeCheckpointHandler(),
                "input": ocp.JsonCheckpointHandler(),
            },
        )

    def due(self, step: int) -> bool:
        """Whether to save after `step` steps; False where that is done already."""
        return step > 0 and step % self._every_n_steps == 0 and step != self.latest_step()

    def latest_step(self) -> int | None:
        """The newest checkpoint: complete, or being written by this process."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, input_state: dict[str, Any]) -> None:
        """Copies the state from the devices and returns; files are written in the background."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(state), input=ocp.args.JsonSave(input_state)
            ),
            force=True,
        )

    def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest state and data state.

        Args:
            state: Shapes with the shardings to restore onto.
        """
        restored = self._manager.restore(
            self.latest_step(),
            args=ocp.args.Composite(
                state=_restore_args(state, partial=False), input=ocp.args.JsonRestore()
            ),
        )
        return restored["state"], restored["input"]

    def restore_params(self, params: Any, *, step: int | None = None) -> Any:
        """Only the parameters, onto the shardings of these shapes.

        Args:
            step: Which checkpoint; the newest if None.

        Raises:
            ValueError: There is no such checkpoint.
        """
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise ValueError(
                f"no complete checkpoint in {self._manager.directory}; train the model first, "
                "or name the output folder of a run"
            )
        if step not in (None, *steps):
            raise ValueError(
                f"step={step}: no complete checkpoint in {self._manager.directory}; "
                f"those of the steps {steps} are there"
            )
        restored = self._manager.restore(
            steps[-1] if step is None else step,
            args=ocp.args.Composite(state=_restore_args({"params": params}, partial=True)),
        )
        return restored["state"]["params"]

    def wait(self) -> None:
        """Returns when everything saved is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def _restore_args(shapes: Any, *, partial: bool) -> ocp.args.PyTreeRestore:
    return ocp.args.PyTreeRestore(
        item=shapes,
        restore_args=jax.tree.map(
            lambda x: ocp.ArrayRestoreArgs(
                sharding=x.sharding, global_shape=x.shape, dtype=x.dtype
            ),
            shapes,
        ),
        partial_restore=partial,
    )
