"""The training loop: saves, evaluates, loads a batch and runs a step until done; then reports.

SIGTERM and SIGINT stop a run after the current step, or in the middle of an evaluation, and save a
checkpoint. The exit code is then 128 plus the signal number (143 or 130), which tells a supervisor
to launch the run again.

In a run of several processes, each process loads the rows of its own devices and runs the same
loop. Process 0 writes the logs. A signal to one process stops all of them after the same step.

A failed evaluation or save does not end a run. If a final one fails, the report contains the other
results and the reason, the exit code is `INCOMPLETE`, and a new launch repeats what failed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm1_jax.multihost import distributed
from mm1_jax.train.evaluations import Evaluations, EvaluationSummary, reason
from mm1_jax.train.guards.anomalies import Anomalies, ExcludedSteps, NonFiniteLoss
from mm1_jax.train.guards.corruption import Corruption
from mm1_jax.train.guards.stop import StopSignals
from mm1_jax.train.guards.watchdog import Watchdog
from mm1_jax.train.host_batches import HostBatch, HostBatches
from mm1_jax.train.logs.goodput import Goodput
from mm1_jax.train.logs.profile import Profile
from mm1_jax.train.logs.progress import print_line
from mm1_jax.train.logs.report import summarize_training, write_report
from mm1_jax.train.logs.run_log import RunLog
from mm1_jax.train.metrics import Metrics
from mm1_jax.train.program import Program
from mm1_jax.train.saves import Saves
from mm1_jax.train.train_state import TrainState

# Exit code of a run whose final evaluation, save or report failed.
INCOMPLETE = 3
# Exit code of a run that was stopped by a signal and could not be saved.
NOT_SAVED = 1


@dataclass
class Loop:
    """A run in progress: its opened components, and the steps of the loop.

    Attributes:
        first_state: Creates the initial state.
        compiled_step: None until the first step.
    """

    output_dir: Path
    max_steps: int
    program: Program
    first_state: Callable[[], TrainState]
    batches: HostBatches
    saves: Saves
    evaluations: Evaluations
    log: RunLog
    goodput: Goodput
    profile: Profile
    watchdog: Watchdog
    stop: StopSignals
    anomalies: Anomalies
    corruption: Corruption
    excluded: ExcludedSteps
    compiled_step: Any = None

    def run(self, saved_step: int | None) -> None:
        """Trains to the last step and reports.

        Args:
            saved_step: Checkpoint to resume from; None starts from the initial state.

        Raises:
            SystemExit: A signal stopped the run, or the final evaluation, save or report failed
                while everything else was completed.
            NonFiniteLoss: Training cannot continue. The last checkpoint precedes the anomaly.
        """
        state, step = self._restore_or_initialize(saved_step), saved_step or 0
        self._log_start(saved_step)
        self.goodput.begin(step)
        while step < self.max_steps:
            try:
                state = self._advance(step, state)
                step += 1
                if step == self.max_steps:
                    self.log.flush()
            except NonFiniteLoss as anomaly:
                state, step = self._roll_back(anomaly)
        self._finish(state)

    def _advance(self, step: int, state: TrainState) -> TrainState:
        """Runs step `step + 1`, and before it the save and evaluations that are due."""
        self.watchdog.progress(step)
        # Save first, so that no failure of an evaluation can cost a step.
        self.saves.save_if_due(step, state)
        self.evaluations.run_due(step, state)
        self._exit_if_signaled(step, state)
        batch, seconds = self._next_batch(step, state)
        if step + 1 in self.excluded:
            self.log.message(f"step {step + 1} is excluded by excluded_steps.json")
            return state._replace(step=state.step + 1)
        self.profile.before(step)
        state, metrics = self._step(step, state, batch)
        self.profile.after(step + 1, metrics)
        self.goodput.step(step + 1)
        self.log.step(
            step + 1, metrics, data_wait_seconds=seconds, accounting=self.batches.accounting
        )
        return state

    def _restore_or_initialize(self, saved_step: int | None) -> TrainState:
        """Restores the state of a checkpoint and of the batches, or creates the initial state."""
        if saved_step is None:
            return self.first_state()
        return self.saves.restore(saved_step, self.program.abstract_state)

    def _log_start(self, saved_step: int | None) -> None:
        start = "starts" if saved_step is None else f"continues after step {saved_step}"
        processes = distributed.process_count()
        mesh = self.program.mesh
        self.log.message(self.batches.describe())
        self.log.message(
            f"{self.program.num_parameters:,} parameters, {mesh.devices.flat[0].device_kind} mesh "
            f"{dict(mesh.shape)}"
            + (f" of {processes} processes" if processes > 1 else "")
            + f"; training {start}, up to step {self.max_steps}"
        )

    def _next_batch(self, step: int, state: TrainState) -> tuple[HostBatch, float]:
        start = time.perf_counter()
        with self.goodput.measure("data_wait"):
            try:
                batch = next(self.batches)
            except Exception as error:
                # A signal to the whole process group also ends the data workers; not an error.
                if self.stop.received and distributed.process_count() == 1:
                    self._exit_if_signaled(step, state)
                if not isinstance(error, RuntimeError):
                    raise
                # Workers were killed. They are stateless, so new ones produce the same batch.
                print_line(f"data workers failed ({reason(error)}); restarting them")
                self.batches.restart()
                batch = next(self.batches)
        return batch, time.perf_counter() - start

    def _step(self, step: int, state: TrainState, batch: HostBatch) -> tuple[TrainState, Metrics]:
        placed = self.program.place(batch)
        if self.compiled_step is None:
            start = time.perf_counter()
            with self.goodput.measure("compile"):
                self.compiled_step = self.program.compile()
            self.log.message(f"compiled the train step in {time.perf_counter() - start:.1f} s")
            self.log.start_clock()
        self.corruption.check_replicas(step, state)
        if self.corruption.recomputes(step + 1):
            return self.corruption.step_twice(self.compiled_step, state, placed)
        return self.compiled_step(state, placed)

    def _roll_back(self, anomaly: NonFiniteLoss) -> tuple[TrainState, int]:
        """Restores the newest checkpoint before the anomaly and excludes the anomalous step.

        Returns:
            The restored state and its step.

        Raises:
            NonFiniteLoss: The config does not allow rolling back, or not this often in a row.
        """
        if not self.anomalies.may_roll_back():
            raise anomaly
        if (failure := self.saves.failure()) is not None:
            self.log.message(f"error: {failure}")
        saved_step = self.saves.checkpointer.newest_intact_step(before=anomaly.step)
        step = saved_step or 0
        self.log.message(f"{anomaly}; rolled back to step {step}, excluding this one")
        self.excluded.add(anomaly.step, write=distributed.is_first())
        self.goodput.rolled_back(step)
        self.log.rewind(step)
        self.evaluations.rewind(step)
        self.batches.rewind()
        return self._restore_or_initialize(saved_step), step

    def _exit_if_signaled(self, step: int, state: TrainState) -> None:
        """Saves and exits if a stop signal was received; otherwise returns."""
        number = self.stop.agreed_signal()
        if number is None:
            return
        self.saves.save(step, state)
        failure = self.saves.failure(step)
        self.goodput.write()
        if failure is not None:
            self.log.message(f"error: {number.name}: stopped after step {step}; {failure}")
            raise SystemExit(NOT_SAVED)
        self.log.message(
            f"{number.name}: stopped after step {step}, saved in {self.output_dir}; "
            "launch again to continue"
        )
        raise SystemExit(128 + number)

    def _finish(self, state: TrainState) -> None:
        step = int(state.step)
        self.saves.save(step, state)
        summary = self.evaluations.run_all(
            step, state, exit_if_signaled=lambda: self._exit_if_signaled(step, state)
        )
        errors = [self.saves.failure(step)]
        with self.goodput.measure("report"):
            errors.append(self._try_report(summary))
        self.goodput.write()
        self.log.scalars(step, {f"goodput/{k}": v for k, v in self.goodput.totals().items()})
        self.log.message(self.goodput.describe())
        self.log.message(
            f"finished after step {step}; report: {self.output_dir / 'report.md'}; "
            f"TensorBoard: tensorboard --logdir {self.output_dir / 'tensorboard'}"
        )
        if summary.failures:
            errors.append(
                "the report lacks the evaluations that failed: "
                f"{', '.join(summary.failures)}; "
                "launch again to repeat the evaluation of the trained model"
            )
        if any(errors):
            for error in filter(None, errors):
                self.log.message(f"error: {error}")
            raise SystemExit(INCOMPLETE)

    def _try_report(self, summary: EvaluationSummary) -> str | None:
        """Writes the report; returns an error message if it cannot be written."""
        failure = None
        try:
            self._write_report(summary)
        except OSError as error:
            failure = (
                f"the report could not be written ({error.strerror or error}); free space, "
                "and launch again to repeat it"
            )
        return distributed.broadcast(failure)

    def _write_report(self, summary: EvaluationSummary) -> None:
        accounting = self.batches.accounting()
        if not distributed.is_first():
            return
        write_report(
            self.output_dir,
            title=self.output_dir.name,
            training=summarize_training(self.log.step_records(), self.program.num_parameters),
            evaluation=summary.metrics,
            evaluators=self.evaluations.text,
            failures=summary.failures,
            samples=summary.samples,
            accounting=accounting,
        )
