"""Checkpoints of a run: training state and data state, written together by Orbax in the background.

    <step>/             state, input (the data state), model (its config), manifest.json
    <step>.damaged/     a damaged checkpoint, kept for inspection
    run.json            identity of the run that owns the checkpoints
    best.json           the step with the best value of `best_metric` so far

The folder of a step gets its final name only when it is complete. A partial checkpoint of a killed
process is therefore never mistaken for a checkpoint; it is removed at the next start. Later damage
is detected by checksums, and the newest intact checkpoint is used instead.
"""

import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from mm1_jax.checkpoints.best_checkpoint import BestCheckpoint
from mm1_jax.checkpoints.checkpoint_folder import checkpoint_folder
from mm1_jax.checkpoints.commit_barrier import CommitBarrier, OutOfStep
from mm1_jax.checkpoints.manifest import find_damage, write_manifest
from mm1_jax.checkpoints.model_identity import raise_if_another_model
from mm1_jax.checkpoints.save_failures import (
    SaveFailed,
    log_tracebacks_only_if_verbose,
    reason_of,
)
from mm1_jax.checkpoints.weights_folder import restore_args
from mm1_jax.config import Configurable, InstantiableConfig, config_class
from mm1_jax.field_types import NonEmpty, PositiveInt
from mm1_jax.multihost import distributed
from mm1_jax.stored_config import flat_fields
from mm1_jax.train.train_state import TrainState

_MAX_LISTED_FILES = 12
# Seconds that a process of a multi-process run waits at exit for files it is writing.
_CLOSING_SECONDS = 60.0

# Numbers the checkpoint managers; all processes create the same ones in the same order.
_managers = itertools.count()


class Checkpointer(Configurable):
    """Saves every n steps, keeps recent and selected checkpoints, restores the newest intact."""

    @config_class
    class Config(Configurable.Config):
        every_n_steps: PositiveInt = 1000
        keep_last: PositiveInt = 3
        # Also keeps checkpoints whose step is a multiple of this. None disables it.
        keep_every_n_steps: PositiveInt | None = None
        # Also keeps the checkpoint with the best value of this evaluation metric, such as
        # "held_out_loss/0/text". An evaluated state that is the best so far is saved.
        best_metric: NonEmpty | None = None
        best_mode: Literal["min", "max"] = "min"
        # Checkpoint folder: an absolute path, gs:// or s3://, or a path relative to the output
        # folder. Defaults to `checkpoints` in the output folder.
        location: str | None = None
        # Checksums make process 0 read every file once more after writing and before restoring.
        checksums: bool = True
        # Time limit for all processes to write their parts.
        timeout_seconds: PositiveInt = 1200

    def __init__(
        self,
        cfg: Config,
        *,
        directory: Path,
        read_only: bool = False,
        model: InstantiableConfig | None = None,
        report: Callable[[str], None] = logging.warning,
    ):
        """Opens a checkpoint folder.

        Args:
            directory: Checkpoint folder, unless the config sets a location.
            model: Config of the model, which is saved, and compared on restore.
            report: Called with messages for users: damaged checkpoints and failed saves.
        """
        super().__init__(cfg)
        self._every_n_steps = cfg.every_n_steps
        log_tracebacks_only_if_verbose()
        self._directory = (
            epath.Path(directory.absolute())
            if cfg.location is None
            else checkpoint_folder(cfg.location, directory.parent)
        )
        self._model = model
        self._report = report
        self._read_only = read_only
        # Step of the save in progress.
        self._saving_step: int | None = None
        self._best = BestCheckpoint(
            self._directory, metric=cfg.best_metric, mode=cfg.best_mode, report=report
        )
        self._manager = self._open()

    def due(self, step: int) -> bool:
        """Returns whether to save after `step` steps; False if that step is already saved."""
        return step > 0 and step % self._every_n_steps == 0 and step != self.latest_step()

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, complete or being written by this process."""
        return self._manager.latest_step()

    def newest_intact_step(self, before: int | None = None) -> int | None:
        """Returns the step of the newest intact checkpoint; damaged ones are renamed.

        Args:
            before: Considers only checkpoints of earlier steps than this.
        """
        while True:
            steps = [s for s in self._manager.all_steps() if before is None or s < before]
            if not steps:
                return None
            newest = max(steps)
            damage = self._damage(newest) if self._config.checksums else []
            if not damage:
                return newest
            self._rename_damaged(newest, "; ".join(damage[:_MAX_LISTED_FILES]))

    def _damage(self, step: int) -> list[str]:
        """Lists the damaged files of a checkpoint, of which each process checks a share."""
        with distributed.together():
            found = find_damage(
                self._directory / str(step),
                part=distributed.process_index(),
                num_parts=distributed.process_count(),
            )
        each = distributed.exchange(found)
        return list(dict.fromkeys(line for lines in each for line in lines or ()))

    def save(self, step: int, state: TrainState, input_state: dict[str, Any] | None) -> bool:
        """Copies the state from the devices and starts writing files in the background.

        Args:
            input_state: State of the input of the whole batch; process 0 writes it.

        Returns:
            Whether the save has started. If it has not, or if it fails later, `report` is called
            and training may continue; the next save does not depend on it.
        """
        items: dict[str, Any] = {
            "state": ocp.args.PyTreeSave(state),
            "input": ocp.args.JsonSave(input_state or {}),
        }
        if self._model is not None:
            # `config` is for people, and for older versions that do not know `fields`.
            lines = self._model.debug_string().splitlines()
            items["model"] = ocp.args.JsonSave(
                {"config": lines, "fields": flat_fields(self._model)}
            )
        try:
            self._finish_save()
        except SaveFailed as error:
            self._report_failure(error)
        self._saving_step = step
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        # The run still has its state, whatever Orbax, TensorStore or the file system raise.
        except Exception as error:
            if distributed.process_count() > 1:
                # The other processes have already started the save.
                raise
            self._abandon_save()
            self._report_failure(SaveFailed(step, reason_of(error)))
            return False
        return True

    def record_metrics(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Records the metrics of an evaluation; returns whether to save its state as the best."""
        return self._best.record_metrics(step, metrics)

    def restore(
        self, state: TrainState, *, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """Restores a training state and its data state.

        Args:
            state: Shapes with the shardings to restore onto; dtypes may differ from the saved ones.
            step: Step of the checkpoint; defaults to the newest.

        Raises:
            ValueError: There is no checkpoint, or it is of another model.
        """
        step = self.latest_step() if step is None else step
        if step is None:
            raise ValueError(self._no_checkpoint())
        self._raise_if_of_another_model(step, state)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=restore_args(state, partial=False), input=ocp.args.JsonRestore()
            ),
        )
        return restored["state"], restored["input"]

    def restore_params(self, params: Any, *, step: int | None = None) -> Any:
        """Restores only the parameters, onto the shardings of these shapes.

        Args:
            step: Step of the checkpoint; defaults to the newest.

        Raises:
            ValueError: There is no such checkpoint.
        """
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise ValueError(self._no_checkpoint())
        if step not in (None, *steps):
            raise ValueError(
                f"step={step}: no complete checkpoint in {self._manager.directory}; "
                f"those of the steps {steps} are there"
            )
        restored = self._manager.restore(
            steps[-1] if step is None else step,
            args=ocp.args.Composite(state=restore_args({"params": params}, partial=True)),
        )
        return restored["state"]["params"]

    def wait(self) -> None:
        """Waits until the last save is on disk; raises SaveFailed if it failed."""
        self._finish_save()

    def close(self) -> None:
        if distributed.process_count() > 1:
            # Other processes may have failed and may never finish their parts.
            self._failure_reason(_CLOSING_SECONDS)
            return
        try:
            self._finish_save()
        except SaveFailed as error:
            self._report_failure(error)
        self._manager.close()

    def _open(self) -> ocp.CheckpointManager:
        cfg, read_only = self._config, self._read_only
        # A new name per manager, so that a save abandoned by some processes does not clash.
        name = f"saves_{next(_managers)}"
        is_alone = distributed.process_count() == 1
        return ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=None if read_only else _KeepPolicy(self._is_kept),
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                read_only=read_only,
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    barrier_sync_key_prefix=None if is_alone else name
                ),
                async_options=ocp.AsyncOptions(
                    timeout_secs=cfg.timeout_seconds,
                    post_finalization_callback=self._write_manifest,
                    barrier_sync_fn=None if is_alone else CommitBarrier(name),
                ),
            ),
            item_handlers={
                # Can restore any subtree, unlike the standard handler.
                "state": ocp.PyTreeCheckpointHandler(),
                "input": ocp.JsonCheckpointHandler(),
                "model": ocp.JsonCheckpointHandler(),
            },
        )

    def _finish_save(self) -> None:
        """Waits for the previous save; raises SaveFailed in all processes if it failed in any."""
        step = self._saving_step
        if step is None:
            return
        reasons = distributed.exchange(self._failure_reason())
        failed = {process: reason for process, reason in enumerate(reasons) if reason}
        if not failed:
            self._saving_step = None
            return
        self._abandon_save()
        # Report the process that caused the failure, not those that only learned of it.
        causes = {p: r for p, r in failed.items() if OutOfStep.__name__ not in r} or failed
        process, reason = next(iter(causes.items()))
        raise SaveFailed(step, reason if len(reasons) == 1 else f"process {process}: {reason}")

    def _failure_reason(self, patience: float | None = None) -> str | None:
        """Returns why the previous save failed in this process; None if it did not.

        Waits at most `patience` seconds for the save to finish.
        """
        reasons: list[str] = []

        def wait() -> None:
            try:
                self._manager.wait_until_finished()
            except Exception as error:
                logging.debug("Traceback of the save that failed:", exc_info=True)
                reasons.append(reason_of(error))

        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        waiting.join(patience)
        return reasons[0] if reasons else None

    def _abandon_save(self) -> None:
        """Abandons the failed save and removes its partial files."""
        step, self._saving_step = self._saving_step, None
        if distributed.is_first():
            # Free the space now; Orbax would remove the files only before its next save.
            for folder in self._partial_folders(step):
                with contextlib.suppress(OSError):
                    folder.rmtree(missing_ok=True)
        self._manager = self._open()

    def _report_failure(self, error: SaveFailed) -> None:
        self._report(
            f"error: {error}; the run continues, and saves every {self._every_n_steps} steps"
        )

    def _no_checkpoint(self) -> str:
        return (
            f"no complete checkpoint in {self._manager.directory}; train the model first, "
            "or name the output folder of a run"
        )

    def _partial_folders(self, step: int | None) -> list[epath.Path]:
        if not self._directory.exists():
            return []
        return [
            path
            for path in self._directory.iterdir()
            if path.name.startswith(f"{step}.orbax-checkpoint-tmp")
        ]

    def _write_manifest(self) -> None:
        """Called by Orbax in process 0, after all files are written and before the commit."""
        if not self._config.checksums:
            return
        # On file systems without renames, Orbax writes directly into the final folder.
        folders = self._partial_folders(self._saving_step) or [
            self._directory / str(self._saving_step)
        ]
        for folder in folders:
            write_manifest(folder)

    def _rename_damaged(self, step: int, reason: str) -> None:
        folder = self._directory / str(step)
        if distributed.is_first():
            target, number = self._directory / f"{step}.damaged", 1
            while target.exists():
                number += 1
                target = self._directory / f"{step}.damaged{number}"
            folder.rename(target)
        distributed.broadcast(True)
        self._manager.reload()
        self._report(
            f"error: the checkpoint of step {step} is damaged ({reason}); it is renamed to "
            f"{step}.damaged, and the newest intact one is used"
        )

    def _is_kept(self, step: int, steps: Sequence[int]) -> bool:
        cfg = self._config
        if step in sorted(steps)[-cfg.keep_last :] or step == self._best.step:
            return True
        return cfg.keep_every_n_steps is not None and step % cfg.keep_every_n_steps == 0

    def _raise_if_of_another_model(self, step: int, state: TrainState) -> None:
        saved_config = None
        if self._model is not None and (self._directory / str(step) / "model").exists():
            restored = self._manager.restore(
                step, args=ocp.args.Composite(model=ocp.args.JsonRestore())
            )
            saved_config = restored["model"].get("fields", restored["model"]["config"])
        raise_if_another_model(
            self._directory / str(step),
            saved_params=self._manager.item_metadata(step)["state"].tree["params"],
            params=state.params,
            saved_config=saved_config,
            model=self._model,
        )


@dataclasses.dataclass
class _KeepPolicy:
    """Adapts `is_kept` to the preservation policy interface of Orbax."""

    is_kept: Callable[[int, Sequence[int]], bool]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        return [self.is_kept(step, steps) for step in steps]
