"""Checkpoints of a run: training state and data state, written together by orbax in the background.

    <step>/             state, input (the data state), model (its config as text), manifest.json
    <step>.damaged/     what could not be restored, for people to look at
    run.json            which run they are of
    best.json           the step that `best_metric` liked best up to now

A step's folder gets its name only when all of it is there, so what a killed process leaves half
written is never taken for a checkpoint, and is removed at the next start. What is damaged later is
found by its checksums, and the newest whole checkpoint is used.
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

_MOST_DAMAGED = 12
# Seconds that one of several processes waits at its end for files that it is writing.
_CLOSING_SECONDS = 60.0

# All processes make the same ones, in the same order.
_managers = itertools.count()


class Checkpointer(Configurable):
    """Saves every n steps, keeps the last few and chosen others, restores the newest whole one."""

    @config_class
    class Config(Configurable.Config):
        every_n_steps: PositiveInt = 1000
        keep_last: PositiveInt = 3
        # Besides, every one whose step is a multiple of this: none.
        keep_every_n_steps: PositiveInt | None = None
        # Besides, the one after whose step this metric of an evaluation was best, such as
        # "held_out_loss/0/text"; a state that is evaluated is saved then.
        best_metric: NonEmpty | None = None
        best_mode: Literal["min", "max"] = "min"
        # Where they lie: an absolute path, a path from the output folder on, gs:// or s3://.
        # None: `checkpoints` in the output folder.
        location: str | None = None
        # Process 0 reads every file once more when it is written, and when it is restored.
        checksums: bool = True
        # For all processes to have written their part.
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
        """Opens a folder of checkpoints.

        Args:
            directory: The folder, where the config names no other.
            model: The config of the model, to save as text and to compare.
            report: Is told what people should know of: damage, and saves that failed.
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
        # The step that is being written.
        self._saving: int | None = None
        self._best = BestCheckpoint(
            self._directory, metric=cfg.best_metric, mode=cfg.best_mode, report=report
        )
        self._manager = self._open()

    def due(self, step: int) -> bool:
        """Tells if to save after `step` steps; False where that is done already."""
        return step > 0 and step % self._every_n_steps == 0 and step != self.latest_step()

    def latest_step(self) -> int | None:
        """The newest checkpoint: complete, or being written by this process."""
        return self._manager.latest_step()

    def newest_whole_step(self, before: int | None = None) -> int | None:
        """The newest checkpoint that is as it was written; damaged ones are put aside.

        Args:
            before: Only one of an earlier step.
        """
        while True:
            steps = [s for s in self._manager.all_steps() if before is None or s < before]
            if not steps:
                return None
            newest, damage = max(steps), None
            with distributed.together():
                if distributed.is_first() and self._config.checksums:
                    damage = find_damage(self._directory / str(newest))
            damage = distributed.broadcast(damage)
            if not damage:
                return newest
            self._put_aside(newest, "; ".join(damage[:_MOST_DAMAGED]))

    def save(self, step: int, state: TrainState, input_state: dict[str, Any] | None) -> bool:
        """Copies the state from the devices and returns; files are written in the background.

        Args:
            input_state: State of the input of the whole batch; that of process 0 is written.

        Returns:
            Whether it was begun. If it was not, or fails later, `report` is told, and training may
            go on: the next save is tried as if there had been none.
        """
        items: dict[str, Any] = {
            "state": ocp.args.PyTreeSave(state),
            "input": ocp.args.JsonSave(input_state or {}),
        }
        if self._model is not None:
            # Lines are for people, and for code from before `fields`.
            lines = self._model.debug_string().splitlines()
            items["model"] = ocp.args.JsonSave(
                {"config": lines, "fields": flat_fields(self._model)}
            )
        try:
            self._settle()
        except SaveFailed as error:
            self._report_failure(error)
        self._saving = step
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        # Whatever it is, of orbax, TensorStore or the file system: the run has its state.
        except Exception as error:
            if distributed.process_count() > 1:
                # The others have begun.
                raise
            self._give_up()
            self._report_failure(SaveFailed(step, reason_of(error)))
            return False
        return True

    def note(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Takes the metrics of an evaluation; whether its state is the best and so to be saved."""
        return self._best.note(step, metrics)

    def restore(
        self, state: TrainState, *, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """A state and its data state.

        Args:
            state: Shapes with the shardings to restore onto; types may differ from what was saved.
            step: Which checkpoint; the newest if None.

        Raises:
            ValueError: It is of another model.
        """
        step = self.latest_step() if step is None else step
        if step is None:
            raise ValueError(self._nothing_there())
        self._raise_if_of_another_model(step, state)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=restore_args(state, partial=False), input=ocp.args.JsonRestore()
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
            raise ValueError(self._nothing_there())
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
        """Returns when everything saved is on disk; raises SaveFailed where it cannot be."""
        self._settle()

    def close(self) -> None:
        if distributed.process_count() > 1:
            # Others may have failed, and not finish what they write.
            self._outcome(_CLOSING_SECONDS)
            return
        try:
            self._settle()
        except SaveFailed as error:
            self._report_failure(error)
        self._manager.close()

    def _open(self) -> ocp.CheckpointManager:
        cfg, read_only = self._config, self._read_only
        # Names that were not used yet, also after a save that only some processes gave up.
        name = f"saves_{next(_managers)}"
        is_alone = distributed.process_count() == 1
        return ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=None if read_only else _Preserved(self._is_kept),
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
                # Restores any subtree, which the standard handler does not.
                "state": ocp.PyTreeCheckpointHandler(),
                "input": ocp.JsonCheckpointHandler(),
                "model": ocp.JsonCheckpointHandler(),
            },
        )

    def _settle(self) -> None:
        """Ends the save before; raises SaveFailed in all processes where it failed in any."""
        step = self._saving
        if step is None:
            return
        reasons = distributed.exchange(self._outcome())
        failed = {process: reason for process, reason in enumerate(reasons) if reason}
        if not failed:
            self._saving = None
            return
        self._give_up()
        # Not of those who only learnt of it.
        causes = {p: r for p, r in failed.items() if OutOfStep.__name__ not in r} or failed
        process, reason = next(iter(causes.items()))
        raise SaveFailed(step, reason if len(reasons) == 1 else f"process {process}: {reason}")

    def _outcome(self, patience: float | None = None) -> str | None:
        """Why the save before failed in this process; None where it did not, within `patience`."""
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

    def _give_up(self) -> None:
        """Forgets the save that failed, and removes what is there of it."""
        step, self._saving = self._saving, None
        if distributed.is_first():
            # Now, as what comes next may need the space; orbax does so before its next save.
            for folder in self._unfinished(step):
                with contextlib.suppress(OSError):
                    folder.rmtree(missing_ok=True)
        self._manager = self._open()

    def _report_failure(self, error: SaveFailed) -> None:
        self._report(
            f"error: {error}; the run goes on without it, and saves every "
            f"{self._every_n_steps} steps"
        )

    def _nothing_there(self) -> str:
        return (
            f"no complete checkpoint in {self._manager.directory}; train the model first, "
            "or name the output folder of a run"
        )

    def _unfinished(self, step: int | None) -> list[epath.Path]:
        if not self._directory.exists():
            return []
        return [
            path
            for path in self._directory.iterdir()
            if path.name.startswith(f"{step}.orbax-checkpoint-tmp")
        ]

    def _write_manifest(self) -> None:
        """By orbax, in process 0, when all files are written and none is committed yet."""
        if not self._config.checksums:
            return
        # On a file system without renames, orbax writes into the final folder.
        folders = self._unfinished(self._saving) or [self._directory / str(self._saving)]
        for folder in folders:
            write_manifest(folder)

    def _put_aside(self, step: int, reason: str) -> None:
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
            f"error: the checkpoint of step {step} is damaged ({reason}); it is put aside as "
            f"{step}.damaged, and the newest whole one is used"
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
class _Preserved:
    """Asks whether a step is kept, in the form in which orbax wants to know it."""

    is_kept: Callable[[int, Sequence[int]], bool]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        return [self.is_kept(step, steps) for step in steps]
