"""The training loop: restore or initialise; evaluate, save, fetch and step until done; report.

Outputs, all in one folder:

    metrics.jsonl        one object per step
    evaluations.jsonl    one object per evaluator and step at which it ran
    checkpoints/         training state and data state of the last few saves
    tensorboard/         the same numbers, and pictures with the model's answers
    report.md  report.json  samples.png      at the end

A launch into the folder of an interrupted run continues it, with the same batches and the same
losses, bit for bit. SIGTERM and SIGINT end a run after the step that is being made, with a
checkpoint; the exit code is then 128 plus the number of the signal (143 or 130), so that a
supervisor knows that there is more to do.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from flax import nnx

from mm1_jax.batch import Batch
from mm1_jax.config import REQUIRED, Configurable, InstantiableConfig, Required, config_class
from mm1_jax.sharding import Parallelism, batch_shardings, device_batch, use_mesh
from mm1_jax.train.checkpoint import Checkpointer
from mm1_jax.train.loss import Loss
from mm1_jax.train.metrics import Metrics
from mm1_jax.train.optimizer import Optimizer
from mm1_jax.train.progress import Progress
from mm1_jax.train.report import reported_step, summarize_training, write_report
from mm1_jax.train.run_log import RunLog
from mm1_jax.train.train_state import (
    TrainState,
    abstract_model,
    make_initialize,
    state_shardings,
    with_shardings,
)
from mm1_jax.train.train_step import compile_train_step, make_train_step


class Trainer(Configurable):
    """Trains a model on the batches of an input, and judges it."""

    @config_class
    class Config(Configurable.Config):
        max_steps: Required[int] = REQUIRED
        # Of the initial parameters; the data side has its own.
        seed: int = 0
        optimizer: Optimizer.Config = Optimizer.default_config()
        loss: Loss.Config = Loss.default_config()
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
        devices: Sequence[jax.Device] | None = None,
    ):
        """Works everything out that needs no array.

        Args:
            model: Config of an `MM1`.
            input: A `data.input.Input`; of it, `corpus_names` and `iterator()` are used.
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
        self._mesh = cfg.parallelism.instantiate().mesh(devices)
        self._rules = cfg.parallelism.rules
        self._prng_key = jax.random.key(cfg.seed)

        def make_model(prng_key: jax.Array) -> nnx.Module:
            return model.instantiate(rngs=nnx.Rngs(params=prng_key))

        self._graphdef, params = abstract_model(make_model)
        self._num_parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
        optimizer = cfg.optimizer.instantiate()
        transformation = optimizer.transformation(params)
        self.initialize = make_initialize(make_model, transformation)
        shapes = jax.eval_shape(self.initialize, self._prng_key)
        shardings = state_shardings(shapes, params, transformation, self._mesh, self._rules)
        # What can be compiled or restored without a run: pure functions, and shapes with shardings.
        self.abstract_state = with_shardings(shapes, shardings)
        self.train_step = make_train_step(
            self._graphdef,
            cfg.loss.instantiate(),
            transformation,
            optimizer.learning_rate,
            num_corpora=len(input.corpus_names),
        )
        self._batch_shardings = batch_shardings(self._mesh, self._rules)
        self._compiled_step: jax.stages.Compiled | None = None

    def run(self) -> None:
        """Trains up to `max_steps`, from the newest checkpoint if there is one, and reports.

        Raises:
            SystemExit: A signal asked to stop; everything is saved.
            NonFiniteLoss: Training cannot go on; the last checkpoint is from before.
        """
        self._output_dir.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            self._checkpointer = stack.enter_context(closing(self._make_checkpointer()))
            first_step = self._checkpointer.latest_step() or 0
            if first_step >= self._max_steps and reported_step(self._output_dir) == first_step:
                print(f"finished already; report: {self._output_dir / 'report.md'}", flush=True)
                return
            self._log = stack.enter_context(closing(self._make_log(first_step)))
            self._batches = stack.enter_context(closing(self._input.iterator()))
            self._stop = stack.enter_context(_StopSignals())

            state = self._restore_or_initialize()
            for step in range(first_step, self._max_steps):
                self._evaluate_if_due(step, state)
                self._save_if_due(step, state)
                batch, seconds = self._next_batch()
                state, metrics = self._step(state, batch)
                self._log.step(step + 1, metrics, data_wait_seconds=seconds)
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
            shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
            state = jax.jit(self.initialize, out_shardings=shardings)(self._prng_key)
            start = "starts"
        else:
            state, input_state = self._checkpointer.restore(self.abstract_state)
            self._batches.set_state(input_state)
            start = f"continues after step {int(state.step)}"
        self._log.message(
            f"{self._num_parameters:,} parameters, {jax.devices()[0].device_kind} mesh "
            f"{dict(self._mesh.shape)}; training {start}, up to step {self._max_steps}"
        )
        return state

    def _evaluate_if_due(self, step: int, state: TrainState) -> None:
        for name, evaluator in self._evaluators.items():
            is_due = evaluator.due(step, self._max_steps) and not self._log.is_evaluated(step, name)
            if is_due and not self._stop.signal:
                self._log.flush()
                self._evaluate(name, evaluator, step, state)
                self._log.start_clock()

    def _evaluate(self, name: str, evaluator: Any, step: int, state: TrainState) -> Any:
        with use_mesh(self._mesh, self._rules):
            result = evaluator.run(nnx.merge(self._graphdef, state.params))
        self._log.evaluation(step, name, result)
        return result

    def _save_if_due(self, step: int, state: TrainState) -> None:
        """Saves at the chosen steps, and when a signal has come; then it does not return."""
        if self._checkpointer.due(step) or self._stop.signal:
            self._save(step, state)
        self._exit_if_asked(step)

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

    def _exit_if_asked(self, step: int) -> None:
        if self._stop.signal is None:
            return
        self._checkpointer.wait()
        self._log.message(
            f"{self._stop.signal.name}: stopped after step {step}, saved in {self._output_dir}; "
            "launch again to continue"
        )
        raise SystemExit(128 + self._stop.signal)

    def _next_batch(self) -> tuple[Batch, float]:
        start = time.perf_counter()
        batch = next(self._batches)
        return batch, time.perf_counter() - start

    def _step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if self._compiled_step is None:
            start = time.perf_counter()
            self._compiled_step = compile_train_step(
                self.train_step, self.abstract_state, batch, self._mesh, self._rules
            )
            self._log.message(f"compiled the train step in {time.perf_counter() - start:.1f} s")
            self._log.start_clock()
        return self._compiled_step(state, device_batch(batch, self._batch_shardings))

    def _finish(self, state: TrainState) -> None:
        step = int(state.step)
        self._save(step, state)
        results = []
        for name, evaluator in self._evaluators.items():
            self._exit_if_asked(step)
            results.append(self._evaluate(name, evaluator, step, state))
        self._checkpointer.wait()
        write_report(
            self._output_dir,
            title=self._output_dir.name,
            training=summarize_training(self._log.step_records(), self._num_parameters),
            evaluation={key: value for result in results for key, value in result.metrics.items()},
            samples=[sample for result in results for sample in result.samples],
            accounting=self._batches.accounting(),
        )
        self._log.message(
            f"finished after step {step}; report: {self._output_dir / 'report.md'}; "
            f"TensorBoard: tensorboard --logdir {self._output_dir / 'tensorboard'}"
        )


class _StopSignals:
    """Notes the first SIGTERM or SIGINT inside the context; a second one acts as it did before."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
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

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self.__exit__()
