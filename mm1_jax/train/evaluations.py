"""Evaluations of a run: schedule of the evaluators, their results and failures.

A failed evaluation does not end a run. During training it is logged, and the evaluator runs again
when it is next due. At the end, the report states why the evaluation is missing.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from absl import logging

from mm1_jax.evals.evaluator import check_result
from mm1_jax.multihost import distributed
from mm1_jax.train.guards.stop import Interrupted, StopSignals
from mm1_jax.train.guards.watchdog import Watchdog
from mm1_jax.train.logs.goodput import Goodput
from mm1_jax.train.logs.run_log import RunLog
from mm1_jax.train.program import Program
from mm1_jax.train.saves import Saves
from mm1_jax.train.train_state import TrainState

# Processes wait at most this long for each other at the end of an evaluation.
_PATIENCE_SECONDS = 300.0


@dataclass
class EvaluationSummary:
    """Combined results of all evaluators for one state.

    Attributes:
        failures: Reasons of failures by name of the evaluator.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    samples: list[Any] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


class Evaluations:
    """Runs the evaluators of a run, each at most once per state."""

    def __init__(
        self,
        evaluators: Mapping[str, Any],
        *,
        max_steps: int,
        program: Program,
        saves: Saves,
        log: RunLog,
        goodput: Goodput,
        watchdog: Watchdog,
        stop: StopSignals,
        logged: Iterable[tuple[int, str]],
    ):
        """Initializes the evaluations; nothing runs yet.

        Args:
            evaluators: `evals.evaluator.Evaluator`s by name.
            logged: Steps and names of evaluations that earlier launches have logged.
        """
        self._evaluators = evaluators
        self._max_steps = max_steps
        self._program = program
        self._saves = saves
        self._log = log
        self._goodput = goodput
        self._watchdog = watchdog
        self._stop = stop
        self._logged = set(logged)

    @property
    def text(self) -> str:
        return evaluators_text({name: each.config for name, each in self._evaluators.items()})

    def rewind(self, step: int) -> None:
        """Forgets evaluations after `step`."""
        self._logged = {each for each in self._logged if each[0] <= step}

    def run_due(self, step: int, state: TrainState) -> None:
        """Runs the evaluators that are due after `step` steps and have not yet run there."""
        for name, evaluator in self._evaluators.items():
            is_due = evaluator.due(step, self._max_steps) and (step, name) not in self._logged
            # With several processes, do not skip: others may not know of the signal yet, and would
            # evaluate alone.
            is_signaled = self._stop.received and distributed.process_count() == 1
            if is_due and not is_signaled:
                self._log.flush()
                self._run(name, step, state)
                self._log.start_clock()

    def run_all(
        self, step: int, state: TrainState, exit_if_signaled: Callable[[], None]
    ) -> EvaluationSummary:
        """Runs every evaluator on the state after the last step.

        Args:
            exit_if_signaled: Called before and after each evaluator.
        """
        summary = EvaluationSummary()
        for name in self._evaluators:
            exit_if_signaled()
            result = self._run(name, step, state)
            exit_if_signaled()
            if isinstance(result, Exception):
                summary.failures[name] = reason(result)
            else:
                summary.metrics |= result.metrics
                summary.samples += result.samples
        return summary

    def _run(self, name: str, step: int, state: TrainState) -> Any:
        """Runs an evaluator; returns its result, its exception, or None if interrupted."""
        evaluator = self._evaluators[name]
        result: Any = None
        failure: Exception | None = None
        try:
            with (
                self._goodput.measure("evaluation"),
                self._stop.interrupting(),
                self._program.use_mesh(),
            ):
                result = evaluator.run(self._program.model(state.params))
                check_result(evaluator, result)
        except Interrupted:
            return None
        except Exception as error:
            if self._stop.received and distributed.process_count() == 1:
                # The signal may also have ended the evaluator's data workers; not a failure.
                return None
            logging.debug("Traceback of the failed evaluation %s:", name, exc_info=True)
            failure = error
        _raise_if_some_failed(name, failure)
        self._watchdog.progress(step)
        if failure is not None:
            self._log.failed_evaluation(step, name, reason(failure))
            return failure
        self._log.evaluation(step, name, result)
        self._logged.add((step, name))
        self._saves.save_if_best(step, state, result.metrics)
        return result


def evaluators_text(evaluators: Mapping[str, Any]) -> str:
    """Returns the configs of evaluators as text, which differs if they differ."""
    return "".join(f"[{name}]\n{cfg.debug_string()}\n" for name, cfg in evaluators.items())


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _raise_if_some_failed(name: str, failure: Exception | None) -> None:
    """Raises RuntimeError in all processes if an evaluation failed in only some of them."""
    if distributed.process_count() == 1:
        return
    own = None if failure is None else reason(failure)
    try:
        reasons = distributed.exchange(own, patience=_PATIENCE_SECONDS)
    except RuntimeError:
        if failure is None:
            raise
        raise RuntimeError(f"evaluation {name} failed in this process only: {own}") from failure
    failed = [process for process, each in enumerate(reasons) if each is not None]
    if failed and len(failed) < len(reasons):
        raise RuntimeError(
            f"evaluation {name} failed in process {failed[0]} only: {reasons[failed[0]]}"
        )
