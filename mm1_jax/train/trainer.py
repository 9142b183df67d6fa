"""The training loop: restore or initialise; save, evaluate, fetch and step until done; report.

Outputs, all in one folder:

    metrics.jsonl        one object per step
    evaluations.jsonl    one object per evaluator and step at which it ran
    checkpoints/         training state and data state of the last few saves
    tensorboard/         the same numbers, and pictures with the model's answers
    report.md  report.json  samples.png      at the end, with report.evals.txt: what was evaluated

A launch into the folder of an interrupted run continues it, with the same batches and the same
losses, bit for bit; into that of a finished run, it evaluates again if the evaluators have changed.
SIGTERM and SIGINT end a run after the step that is being made, or in the middle of an evaluation,
with a checkpoint; the exit code is then 128 plus the number of the signal (143 or 130), so that a
supervisor knows that there is more to do.

An evaluation that fails does not end a run. Where one of those at the end failed, the report has
the others and says why, the exit code is `EVALUATION_FAILED`, and a new launch evaluates again.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from absl import logging
from flax import nnx

from mm1_jax.batch import Batch
from mm1_jax.config import REQUIRED, Configurable, InstantiableConfig, Required, config_class
from mm1_jax.parallelism import MeshRule, Parallelism, choose, devices_name
from mm1_jax.train.checkpoint import Checkpointer
from mm1_jax.train.loss import Loss
from mm1_jax.train.metrics import Metrics
from mm1_jax.train.optimizer import Optimizer
from mm1_jax.train.program import Program
from mm1_jax.train.progress import Progress
from mm1_jax.train.report import is_reported, summarize_training, write_report
from mm1_jax.train.run_log import RunLog
from mm1_jax.train.train_state import TrainState, abstract_model

# Exit code of a run whose report lacks an evaluation.
EVALUATION_FAILED = 3


class Trainer(Configurable):
    """Trains a model on the batches of an input, and judges it."""

    @config_class
    class Config(Configurable.Config):
        max_steps: Required[int] = REQUIRED
        # Of the initial parameters; the data side has its own.
        seed: int = 0
        optimizer: Optimizer.Config = Optimizer.default_config()
        loss: Loss.Config = Loss.default_config()
        # How the work is spread over devices: the first rule that matches their kind and number,
        # with what `parallelism` sets on top.
        mesh_rules: list[MeshRule] = []
        parallelism: Parallelism.Config = Parallelism.default_config()
        checkpointer: Checkpointer.Config = Checkpointer.default_config()
        progress: Progress.Config = Progress.default_config()
        # Steps between two sets of numbers in TensorBoard; `metrics.jsonl` has every step.
        summary_every_n_steps: int = 10

    def __init__(
        self,
        cfg: Config,
        *,
        model: InstantiableConfig,
        input: Any,
        evaluators: Mapping[str, Any],
        output_dir: Path,
        devices: Sequence[Any] | None = None,
    ):
        """Works everything out that needs no array, and touches no device for a wrong config.

        Args:
            model: Config of an `MM1`.
            input: A `data.input.Input`; of it, `batch_size`, `image_buffer`, `corpus_names` and
                `iterator()` are used.
            evaluators: `evals.evaluator.Evaluator`s by name.
            devices: Those to train on; all of them if None.
        """
        super().__init__(cfg)
        for name in ("max_steps", "summary_every_n_steps"):
            if getattr(cfg, name) < 1:
                raise ValueError(f"trainer.{name}={getattr(cfg, name)}: expected at least 1")
        self._max_steps = cfg.max_steps
        self._input = input
        self._evaluators = evaluators
        self._output_dir = output_dir
        # Before a device is touched, for a wrong config to end here.
        cfg.loss.instantiate(), cfg.optimizer.instantiate()
        abstract_model(lambda prng_key: model.instantiate(rngs=nnx.Rngs(params=prng_key)))
        _raise_if_many_processes()
        self.program = self.program_of(
            cfg,
            model=model,
            batch_size=input.batch_size,
            image_buffer=input.image_buffer,
            num_corpora=len(input.corpus_names),
            devices=jax.devices() if devices is None else devices,
        )
        self._compiled_step: Callable[..., Any] | None = None

    @staticmethod
    def program_of(
        cfg: "Trainer.Config",
        *,
        model: InstantiableConfig,
        batch_size: int,
        image_buffer: tuple[int, int],
        num_corpora: int,
        devices: Sequence[Any],
    ) -> Program:
        """What a trainer of this config compiles for the devices."""
        return Program(
            model=model,
            loss=cfg.loss,
            optimizer=cfg.optimizer,
            parallelism=choose(cfg.mesh_rules, cfg.parallelism, devices_name(devices)),
            batch_size=batch_size,
            image_buffer=image_buffer,
            num_corpora=num_corpora,
            devices=devices,
        )

    def run(self) -> None:
        """Trains up to `max_steps`, from the newest checkpoint if there is one, and reports.

        Raises:
            SystemExit: A signal asked to stop, or an evaluation at the end failed; everything else
                is done and saved.
            NonFiniteLoss: Training cannot go on; the last checkpoint is from before.
        """
        self._output_dir.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            self._checkpointer = stack.enter_context(closing(self._make_checkpointer()))
            first_step = self._checkpointer.latest_step() or 0
            is_done = first_step >= self._max_steps
            if is_done and is_reported(self._output_dir, first_step, self._evaluators_text()):
                print(f"finished already; report: {self._output_dir / 'report.md'}", flush=True)
                return
            self._log = stack.enter_context(closing(self._make_log(first_step)))
            self._batches = stack.enter_context(closing(self._input.iterator()))
            self._stop = stack.enter_context(_StopSignals())

            state = self._restore_or_initialize()
            for step in range(first_step, self._max_steps):
                # Saved first: a failure of an evaluation, of whatever kind, then costs no step.
                self._save_if_due(step, state)
                self._evaluate_if_due(step, state)
                self._exit_if_asked(step, state)
                batch, seconds = self._next_batch(step, state)
                state, metrics = self._step(state, batch)
                self._log.step(
                    step + 1,
                    metrics,
                    data_wait_seconds=seconds,
                    accounting=self._batches.accounting,
                )
            self._finish(state)

    def _make_checkpointer(self) -> Checkpointer:
        return self._config.checkpointer.instantiate(directory=self._output_dir / "checkpoints")

    def _make_log(self, first_step: int) -> RunLog:
        cfg = self._config
        return RunLog(
            self._output_dir,
            first_step=first_step,
            corpus_names=self._input.corpus_names,
            progress=cfg.progress.instantiate(max_steps=cfg.max_steps, first_step=first_step),
            summary_every_n_steps=cfg.summary_every_n_steps,
        )

    def _restore_or_initialize(self) -> TrainState:
        if self._checkpointer.latest_step() is None:
            state = self.program.first_state(jax.random.key(self._config.seed))
            start = "starts"
        else:
            state, input_state = self._checkpointer.restore(self.program.abstract_state)
            self._batches.set_state(input_state)
            start = f"continues after step {int(state.step)}"
        self._log.message(self._input.describe())
        self._log.message(
            f"{self.program.num_parameters:,} parameters, {jax.devices()[0].device_kind} mesh "
            f"{dict(self.program.mesh.shape)}; training {start}, up to step {self._max_steps}"
        )
        return state

    def _save_if_due(self, step: int, state: TrainState) -> None:
        if self._checkpointer.due(step):
            self._save(step, state)

    def _evaluate_if_due(self, step: int, state: TrainState) -> None:
        for name, evaluator in self._evaluators.items():
            is_due = evaluator.due(step, self._max_steps) and not self._log.is_evaluated(step, name)
            if is_due and not self._stop.signal:
                self._log.flush()
                self._evaluate(name, evaluator, step, state)
                self._log.start_clock()

    def _evaluate(self, name: str, evaluator: Any, step: int, state: TrainState) -> Any:
        """The result; the exception where it failed, None where a signal ended it."""
        try:
            with self._stop.interrupting(), self.program.use_mesh():
                result = evaluator.run(self.program.model(state.params))
        except _Interrupted:
            return None
        except Exception as error:
            if self._stop.signal:
                # The signal may have ended processes that read for the evaluator, too.
                return None
            logging.debug("Traceback of the failed evaluation %s:", name, exc_info=True)
            self._log.failed_evaluation(step, name, _reason(error))
            return error
        self._log.evaluation(step, name, result)
        return result

    def _save(self, step: int, state: TrainState) -> None:
        # Flushed first: the log of a step is in the file before its checkpoint is, and a state that
        # came of a loss that is not finite is never saved.
        self._log.flush()
        if step == self._checkpointer.latest_step():
            return
        start = time.perf_counter()
        self._checkpointer.save(step, state, self._batches.get_state())
        self._log.save(time.perf_counter() - start)
        self._log.start_clock()

    def _exit_if_asked(self, step: int, state: TrainState) -> None:
        """Does not return when a signal has come: saves, and ends the run."""
        if self._stop.signal is None:
            return
        self._save(step, state)
        self._checkpointer.wait()
        self._log.message(
            f"{self._stop.signal.name}: stopped after step {step}, saved in {self._output_dir}; "
            "launch again to continue"
        )
        raise SystemExit(128 + self._stop.signal)

    def _next_batch(self, step: int, state: TrainState) -> tuple[Batch, float]:
        start = time.perf_counter()
        try:
            batch = next(self._batches)
        except Exception:
            # A signal to the whole process group ends the data workers, too: no error then.
            self._exit_if_asked(step, state)
            raise
        return batch, time.perf_counter() - start

    def _step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if self._compiled_step is None:
            start = time.perf_counter()
            self._compiled_step = self.program.compile(batch)
            self._log.message(f"compiled the train step in {time.perf_counter() - start:.1f} s")
            self._log.start_clock()
        return self._compiled_step(state, self.program.place(batch))

    def _finish(self, state: TrainState) -> None:
        step = int(state.step)
        self._save(step, state)
        results, failures = [], {}
        for name, evaluator in self._evaluators.items():
            self._exit_if_asked(step, state)
            result = self._evaluate(name, evaluator, step, state)
            self._exit_if_asked(step, state)
            if isinstance(result, Exception):
                failures[name] = _reason(result)
            else:
                results.append(result)
        self._checkpointer.wait()
        write_report(
            self._output_dir,
            title=self._output_dir.name,
            training=summarize_training(self._log.step_records(), self.program.num_parameters),
            evaluation={key: value for result in results for key, value in result.metrics.items()},
            evaluators=self._evaluators_text(),
            failures=failures,
            samples=[sample for result in results for sample in result.samples],
            accounting=self._batches.accounting(),
        )
        self._log.message(
            f"finished after step {step}; report: {self._output_dir / 'report.md'}; "
            f"TensorBoard: tensorboard --logdir {self._output_dir / 'tensorboard'}"
        )
        if failures:
            self._log.message(
                f"error: the report is without the evaluations that failed: {', '.join(failures)}; "
                "launch again to repeat the evaluation of the trained model"
            )
            raise SystemExit(EVALUATION_FAILED)

    def _evaluators_text(self) -> str:
        """The configs of the evaluators, as a text that tells different ones apart."""
        return "".join(
            f"[{name}]\n{evaluator.config.debug_string()}\n"
            for name, evaluator in self._evaluators.items()
        )


def _raise_if_many_processes() -> None:
    if jax.process_count() > 1:
        raise ValueError(
            f"{jax.process_count()} JAX processes: training runs in one process only, on all "
            "devices of one machine; launch it without jax.distributed"
        )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class _Interrupted(BaseException):
    """A signal came while something was done that may end anywhere."""


class _StopSignals:
    """Notes the first SIGTERM or SIGINT inside the context; a second one acts as it did before."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._interrupts = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "_StopSignals":
        # Python allows handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Inside, a signal does not wait: it raises `_Interrupted`."""
        self._interrupts = True
        try:
            yield
        finally:
            self._interrupts = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self.__exit__()
        if self._interrupts:
            self._interrupts = False
            raise _Interrupted
