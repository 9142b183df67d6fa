"""Saves during training: their timing, their order relative to the logs, and failures."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from mm1_jax.checkpoints.checkpointer import Checkpointer
from mm1_jax.checkpoints.save_failures import SaveFailed
from mm1_jax.train.guards.watchdog import Watchdog
from mm1_jax.train.host_batches import HostBatches
from mm1_jax.train.logs.goodput import Goodput
from mm1_jax.train.logs.run_log import RunLog
from mm1_jax.train.train_state import TrainState


@dataclass(frozen=True)
class Saves:
    """Saves the training state together with the state of the batches, and restores both."""

    checkpointer: Checkpointer
    batches: HostBatches
    log: RunLog
    goodput: Goodput
    watchdog: Watchdog

    def save_if_due(self, step: int, state: TrainState) -> None:
        if self.checkpointer.due(step):
            self.save(step, state)

    def save_if_best(self, step: int, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Saves `state` if its evaluation metrics are the best so far."""
        if self.checkpointer.record_metrics(step, metrics):
            self.save(step, state)

    def save(self, step: int, state: TrainState) -> None:
        # Flush first: the log of a step is written before its checkpoint, and `flush` raises if the
        # loss is not finite, so that such a state is never saved.
        self.log.flush()
        if step == self.checkpointer.latest_step():
            return
        start = time.perf_counter()
        with self.goodput.measure("checkpoint"):
            is_begun = self.checkpointer.save(step, state, self.batches.get_state())
        if is_begun:
            self.goodput.saved(step)
        self.log.save(time.perf_counter() - start)
        self.log.start_clock()
        self.watchdog.progress(step)

    def restore(self, step: int, abstract_state: TrainState) -> TrainState:
        """Restores the state of a checkpoint, and sets the batches to the same step."""
        state, input_state = self.checkpointer.restore(abstract_state, step=step)
        self.batches.set_state(input_state)
        return state

    def failure(self, step: int | None = None) -> str | None:
        """Waits for the last save; returns an error message if it failed or is not of `step`."""
        failure = None
        with self.goodput.measure("checkpoint"):
            try:
                self.checkpointer.wait()
            except SaveFailed as error:
                failure = str(error)
        saved = self.checkpointer.latest_step()
        if failure is None and step is not None and saved != step:
            # The save never started; the reason has been reported.
            failure = f"step {step} could not be saved"
        if failure is None:
            return None
        again = "from the start" if saved is None else f"after step {saved}"
        return f"{failure}; free space, or fix the cause, and launch again to continue {again}"
