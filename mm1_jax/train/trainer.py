"""The training loop: restore or initialise; save, evaluate, fetch and step until done; report.

Outputs, all in one folder:

    metrics.jsonl        one object per step
    evaluations.jsonl    one object per evaluator and step at which it ran
    checkpoints/         training state and data state of the last few saves
    tensorboard/         the same numbers, and pictures with the model's answers
    goodput.json         where the time went, over all launches
    hosts/               what each process does, a line each
    report.md  report.json  samples.png      at the end, with report.evals.txt: what was evaluated

A launch into the folder of an interrupted run continues it, with the same batches and the same
losses, bit for bit; into that of a finished run, it evaluates again if the evaluators have changed.
SIGTERM and SIGINT end a run after the step that is being made, or in the middle of an evaluation,
with a checkpoint; the exit code is then 128 plus the number of the signal (143 or 130), so that a
supervisor knows that there is more to do.

Of several processes, each makes the rows of its devices and runs the same loop; the first writes
the logs. A signal to one stops all, after the same step.

An evaluation or a save that fails does not end a run. Where one of those at the end failed, the
report has the others and says why, the exit code is `INCOMPLETE`, and a new launch repeats it.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import jax
from absl import logging
from flax import nnx

from mm1_jax.batch import Batch
from mm1_jax.checkpoints.checkpointer import Checkpointer, SaveFailed
from mm1_jax.checkpoints.initial_weights import InitialWeights
from mm1_jax.config import REQUIRED, Configurable, InstantiableConfig, Required, config_class
from mm1_jax.evals.evaluator import check_result
from mm1_jax.field_types import PositiveInt, Range
from mm1_jax.image_buffer import ImageBuffer
from mm1_jax.layers.parameter_paths import parameter_path
from mm1_jax.models.flops import ForwardFlops
from mm1_jax.multihost import distributed
from mm1_jax.parallel.parallelism import MeshRule, Parallelism, choose, devices_name
from mm1_jax.stored_config import former_defaults
from mm1_jax.train.contracts import check_learning_rate
from mm1_jax.train.guards.anomalies import Anomalies, ExcludedSteps, NonFiniteLoss
from mm1_jax.train.guards.corruption import Corruption
from mm1_jax.train.guards.stop import Interrupted, StopSignals
from mm1_jax.train.guards.watchdog import Watchdog
from mm1_jax.train.host_batches import HostBatches, Part
from mm1_jax.train.logs.goodput import Goodput
from mm1_jax.train.logs.profile import Profile
from mm1_jax.train.logs.progress import Progress, say
from mm1_jax.train.logs.report import is_reported, summarize_training, write_report
from mm1_jax.train.logs.run_log import RunLog
from mm1_jax.train.logs.utilisation import Utilisation
from mm1_jax.train.logs.wandb_run import WandbRun
from mm1_jax.train.loss import Loss
from mm1_jax.train.metrics import Metrics
from mm1_jax.train.optimizer import AdamW, Optimizer
from mm1_jax.train.program import Program
from mm1_jax.train.train_state import TrainState, abstract_model

# Exit code of a run whose report lacks an evaluation, or whose last state is not saved.
INCOMPLETE = 3
# Exit code of a run that was stopped and could not be saved.
NOT_SAVED = 1

# Processes that evaluate alike end within this time of each other.
_EVALUATION_PATIENCE_SECONDS = 300.0


class Trainer(Configurable):
    """Trains a model on the batches of an input, and judges it."""

    @config_class
    class Config(Configurable.Config):
        max_steps: Required[PositiveInt] = REQUIRED
        # Of the initial parameters; the data side has its own.
        seed: Annotated[int, Range(at_least=-(2**63), below=2**63)] = 0
        # Parts of the model, by path, that start from other checkpoints; the rest is drawn.
        initial_weights: dict[str, InitialWeights.Config] = {}
        optimizer: Optimizer.Config = AdamW.default_config()
        loss: Loss.Config = Loss.default_config()
        # How the work is spread over devices: the first rule that matches their kind and number,
        # with what `parallelism` sets on top.
        mesh_rules: list[MeshRule] = []
        parallelism: Parallelism.Config = Parallelism.default_config()
        checkpointer: Checkpointer.Config = Checkpointer.default_config()
        progress: Progress.Config = Progress.default_config()
        # Steps between two sets of numbers in TensorBoard; `metrics.jsonl` has every step.
        summary_every_n_steps: PositiveInt = 10
        # Whether every record has the norms of gradient and update of each part: no.
        norms_by_part: bool | None = None
        anomalies: Anomalies.Config = Anomalies.default_config()
        watchdog: Watchdog.Config = Watchdog.default_config()
        corruption: Corruption.Config = Corruption.default_config()
        profile: Profile.Config = Profile.default_config()
        wandb: WandbRun.Config | None = None

    def __init__(
        self,
        cfg: Config,
        *,
        model: InstantiableConfig,
        input: Any,
        evaluators: Mapping[str, Any],
        output_dir: Path,
        devices: Sequence[Any] | None = None,
        flops: ForwardFlops | None = None,
    ):
        """Works everything out that needs no array, and touches no device for a wrong config.

        Args:
            model: Config of an `MM1`.
            input: A `data.input.Input`; of it, `batch_size`, `image_buffer`, `corpus_names` and
                `iterator()` are used.
            evaluators: `evals.evaluator.Evaluator`s by name.
            devices: Those to train on; all of them if None.
            flops: Of the model; None: utilisation is not reported.
        """
        super().__init__(cfg)
        self._max_steps = cfg.max_steps
        self._input = input
        self._evaluators = evaluators
        self._output_dir = output_dir
        self._model = model
        # Before a device is touched, for a wrong config to end here.
        cfg.loss.instantiate(), cfg.optimizer.instantiate()
        self._anomalies: Anomalies = cfg.anomalies.instantiate()
        abstract_model(lambda prng_key: model.instantiate(rngs=nnx.Rngs(params=prng_key)))
        devices = jax.devices() if devices is None else devices
        self.program = self.program_of(
            cfg,
            model=model,
            batch_size=input.batch_size,
            image_buffer=input.image_buffer,
            num_corpora=len(input.corpus_names),
            devices=devices,
        )
        check_learning_rate(self.program.optimizer, cfg.max_steps)
        self._utilisation = Utilisation(flops, num_rows=input.batch_size, devices=devices)
        self._corruption: Corruption = cfg.corruption.instantiate(
            mesh=self.program.mesh, state=self.program.abstract_state
        )
        self._compiled_step: Callable[..., Any] | None = None

    @staticmethod
    def program_of(
        cfg: "Trainer.Config",
        *,
        model: InstantiableConfig,
        batch_size: int,
        image_buffer: ImageBuffer,
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
            anomalies=cfg.anomalies,
            norms_by_part=bool(cfg.norms_by_part),
        )

    def run(self) -> None:
        """Trains up to `max_steps`, from the newest checkpoint if there is one, and reports.

        Raises:
            SystemExit: A signal asked to stop, or an evaluation, the save or the report at the end
                failed; everything else is done.
            NonFiniteLoss: Training cannot go on; the last checkpoint is from before.
        """
        self._output_dir.mkdir(parents=True, exist_ok=True)
        self._goodput = Goodput(self._output_dir if distributed.is_first() else None)
        with contextlib.ExitStack() as stack:
            self._checkpointer = stack.enter_context(closing(self._make_checkpointer()))
            saved_step = self._checkpointer.newest_whole_step()
            step = saved_step or 0
            is_done = step >= self._max_steps
            if is_done and self._is_reported(step):
                if distributed.is_first():
                    say(f"finished already; report: {self._output_dir / 'report.md'}")
                return
            self._watchdog: Watchdog = stack.enter_context(self._make_watchdog())
            self._log = stack.enter_context(closing(self._make_log(step)))
            self._evaluated = {tuple(each) for each in distributed.broadcast(self._log.evaluated)}
            self._excluded = ExcludedSteps(self._output_dir)
            self._profile = stack.enter_context(closing(self._make_profile()))
            self._batches = self._make_batches()
            stack.callback(lambda: self._batches.close())
            self._stop = stack.enter_context(StopSignals())

            state = self._restore_or_initialize(saved_step)
            self._goodput.begin(step)
            while step < self._max_steps:
                try:
                    state = self._advance(step, state)
                    step += 1
                    if step == self._max_steps:
                        self._log.flush()
                except NonFiniteLoss as anomaly:
                    state, step = self._roll_back(anomaly)
            self._finish(state)

    def _advance(self, step: int, state: TrainState) -> TrainState:
        """Makes the step after `step` steps, and what is due before it."""
        self._watchdog.progress(step)
        # Saved first: a failure of an evaluation, of whatever kind, then costs no step.
        self._save_if_due(step, state)
        self._evaluate_if_due(step, state)
        self._exit_if_asked(step, state)
        batch, seconds = self._next_batch(step, state)
        if step + 1 in self._excluded:
            self._log.message(f"step {step + 1} is left out, as {self._output_dir} says")
            return state._replace(step=state.step + 1)
        self._profile.before(step)
        state, metrics = self._step(step, state, batch)
        self._profile.after(step + 1, metrics)
        self._goodput.step(step + 1)
        self._log.step(
            step + 1, metrics, data_wait_seconds=seconds, accounting=self._batches.accounting
        )
        return state

    def _make_checkpointer(self) -> Checkpointer:
        return self._config.checkpointer.instantiate(
            directory=self._output_dir / "checkpoints",
            model=self._model,
            report=lambda text: distributed.is_first() and say(text),
        )

    def _make_watchdog(self) -> Watchdog:
        return self._config.watchdog.instantiate(output_dir=self._output_dir, goodput=self._goodput)

    def _make_log(self, first_step: int) -> RunLog:
        cfg, is_first = self._config, distributed.is_first()
        progress = cfg.progress.instantiate(
            max_steps=cfg.max_steps, first_step=first_step, has_bar=is_first
        )
        wandb = None
        if cfg.wandb is not None and is_first:
            wandb = cfg.wandb.instantiate(
                output_dir=self._output_dir, description=self._description()
            )
        return RunLog(
            self._output_dir,
            first_step=first_step,
            corpus_names=self._input.corpus_names,
            progress=progress,
            summary_every_n_steps=cfg.summary_every_n_steps,
            anomalies=self._anomalies,
            utilisation=self._utilisation,
            wandb=wandb,
            is_writer=is_first,
        )

    def _description(self) -> dict[str, str]:
        """Fields of model and trainer by path."""
        parts = {"model": self._model, "trainer": self._config}
        return {
            f"{name}.{path}": value
            for name, cfg in parts.items()
            for path, value in (line.split(": ", 1) for line in cfg.debug_string().splitlines())
        }

    def _make_profile(self) -> Profile:
        return self._config.profile.instantiate(directory=self._output_dir / "profile")

    def _make_batches(self) -> HostBatches:
        return HostBatches(self._input, self.program.batch_shardings)

    def _is_reported(self, step: int) -> bool:
        return distributed.broadcast(
            distributed.is_first() and is_reported(self._output_dir, step, self._evaluators_text())
        )

    def _restore_or_initialize(self, saved_step: int | None) -> TrainState:
        state = self._state_of(saved_step)
        start = "starts" if saved_step is None else f"continues after step {saved_step}"
        self._log.message(self._input.describe())
        processes = distributed.process_count()
        self._log.message(
            f"{self.program.num_parameters:,} parameters, {jax.devices()[0].device_kind} mesh "
            f"{dict(self.program.mesh.shape)}"
            + (f" of {processes} processes" if processes > 1 else "")
            + f"; training {start}, up to step {self._max_steps}"
        )
        return state

    def _state_of(self, saved_step: int | None) -> TrainState:
        """The state of a checkpoint, to which the batches are set, or the first one."""
        if saved_step is None:
            loaded = self._initial_weights()
            return self.program.first_state(jax.random.key(self._config.seed), loaded)
        state, input_state = self._checkpointer.restore(
            self.program.abstract_state, step=saved_step
        )
        self._batches.set_state(input_state)
        return state

    def _roll_back(self, anomaly: NonFiniteLoss) -> tuple[TrainState, int]:
        """State and number of the newest checkpoint from before; the step is left out from now on.

        Raises:
            NonFiniteLoss: The config does not want it, or has had it too often.
        """
        if not self._anomalies.may_roll_back():
            raise anomaly
        if (failure := self._failed_save()) is not None:
            self._log.message(f"error: {failure}")
        saved_step = self._checkpointer.newest_whole_step(before=anomaly.step)
        step = saved_step or 0
        self._log.message(f"{anomaly}; back to step {step}, without this one")
        self._excluded.add(anomaly.step, write=distributed.is_first())
        self._goodput.rolled_back(step)
        self._log.rewind(step)
        self._evaluated = {each for each in self._evaluated if each[0] <= step}
        self._batches.close()
        self._batches = self._make_batches()
        return self._state_of(saved_step), step

    def _initial_weights(self) -> dict[str, jax.Array]:
        params = {
            parameter_path(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(
                self.program.abstract_state.params
            )
        }
        loaded: dict[str, jax.Array] = {}
        for part, weights in self._config.initial_weights.items():
            loaded |= weights.instantiate().load(part, params, self._model)
            name = part.partition("/")[0] + "."
            kept = [each for each in former_defaults(self._model) if each.startswith(name)]
            self._log.message("; keeps ".join([f"{part} starts from {weights.path}", *kept]))
        return loaded

    def _save_if_due(self, step: int, state: TrainState) -> None:
        if self._checkpointer.due(step):
            self._save(step, state)

    def _evaluate_if_due(self, step: int, state: TrainState) -> None:
        for name, evaluator in self._evaluators.items():
            is_due = evaluator.due(step, self._max_steps) and (step, name) not in self._evaluated
            # Other processes may not know of a signal yet, and would evaluate alone.
            is_asked = self._stop.noted and distributed.process_count() == 1
            if is_due and not is_asked:
                self._log.flush()
                self._evaluate(name, evaluator, step, state)
                self._log.start_clock()

    def _evaluate(self, name: str, evaluator: Any, step: int, state: TrainState) -> Any:
        """The result; the exception where it failed, None where a signal ended it."""
        result, failure = None, None
        try:
            with (
                self._goodput.measure("evaluation"),
                self._stop.interrupting(),
                self.program.use_mesh(),
            ):
                result = evaluator.run(self.program.model(state.params))
                check_result(evaluator, result)
        except Interrupted:
            return None
        except Exception as error:
            if self._stop.noted and distributed.process_count() == 1:
                # The signal may have ended processes that read for the evaluator, too.
                return None
            logging.debug("Traceback of the failed evaluation %s:", name, exc_info=True)
            failure = error
        _raise_if_some_failed(name, failure)
        self._watchdog.progress(step)
        if failure is not None:
            self._log.failed_evaluation(step, name, _reason(failure))
            return failure
        self._log.evaluation(step, name, result)
        self._evaluated.add((step, name))
        if self._checkpointer.note(step, result.metrics):
            self._save(step, state)
        return result

    def _save(self, step: int, state: TrainState) -> None:
        # Flushed first: the log of a step is in the file before its checkpoint is, and a state that
        # came of a loss that is not finite is never saved.
        self._log.flush()
        if step == self._checkpointer.latest_step():
            return
        start = time.perf_counter()
        with self._goodput.measure("checkpoint"):
            is_begun = self._checkpointer.save(step, state, self._batches.get_state())
        if is_begun:
            self._goodput.saved(step)
        self._log.save(time.perf_counter() - start)
        self._log.start_clock()
        self._watchdog.progress(step)

    def _exit_if_asked(self, step: int, state: TrainState) -> None:
        """Does not return when a signal has come: saves, and ends the run."""
        number = self._stop.asked()
        if number is None:
            return
        self._save(step, state)
        failure = self._failed_save(step)
        self._goodput.write()
        if failure is not None:
            self._log.message(f"error: {number.name}: stopped after step {step}; {failure}")
            raise SystemExit(NOT_SAVED)
        self._log.message(
            f"{number.name}: stopped after step {step}, saved in {self._output_dir}; "
            "launch again to continue"
        )
        raise SystemExit(128 + number)

    def _next_batch(self, step: int, state: TrainState) -> tuple[Batch | Sequence[Part], float]:
        start = time.perf_counter()
        with self._goodput.measure("data_wait"):
            try:
                batch = next(self._batches)
            except Exception as error:
                # A signal to the whole process group ends the data workers, too: no error then.
                if self._stop.noted and distributed.process_count() == 1:
                    self._exit_if_asked(step, state)
                if not isinstance(error, RuntimeError):
                    raise
                # Workers that were killed: they have no state, and new ones make the same batch.
                say(f"data workers failed ({_reason(error)}); started again")
                self._batches.restart()
                batch = next(self._batches)
        return batch, time.perf_counter() - start

    def _step(
        self, step: int, state: TrainState, batch: Batch | Sequence[Part]
    ) -> tuple[TrainState, Metrics]:
        placed = self.program.place(batch)
        if self._compiled_step is None:
            start = time.perf_counter()
            with self._goodput.measure("compile"):
                self._compiled_step = self.program.compile(placed)
            self._log.message(f"compiled the train step in {time.perf_counter() - start:.1f} s")
            self._log.start_clock()
        self._corruption.check_replicas(step, state)
        if self._corruption.recomputes(step + 1):
            return self._corruption.step_twice(self._compiled_step, state, placed)
        return self._compiled_step(state, placed)

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
        errors = [self._failed_save(step)]
        with self._goodput.measure("report"):
            errors.append(self._failed_report(results, failures))
        self._goodput.write()
        self._log.scalars(step, {f"goodput/{k}": v for k, v in self._goodput.totals().items()})
        self._log.message(self._goodput.describe())
        self._log.message(
            f"finished after step {step}; report: {self._output_dir / 'report.md'}; "
            f"TensorBoard: tensorboard --logdir {self._output_dir / 'tensorboard'}"
        )
        if failures:
            errors.append(
                f"the report is without the evaluations that failed: {', '.join(failures)}; "
                "launch again to repeat the evaluation of the trained model"
            )
        if any(errors):
            for error in filter(None, errors):
                self._log.message(f"error: {error}")
            raise SystemExit(INCOMPLETE)

    def _failed_save(self, step: int | None = None) -> str | None:
        """Waits for the save before; a sentence where it failed, or is not that of `step`."""
        failure = None
        with self._goodput.measure("checkpoint"):
            try:
                self._checkpointer.wait()
            except SaveFailed as error:
                failure = str(error)
        saved = self._checkpointer.latest_step()
        if failure is None and step is not None and saved != step:
            # It was not begun, and said why.
            failure = f"step {step} could not be saved"
        if failure is None:
            return None
        again = "from the start" if saved is None else f"after step {saved}"
        return f"{failure}; free space, or fix the cause, and launch again to continue {again}"

    def _failed_report(self, results: Sequence[Any], failures: Mapping[str, str]) -> str | None:
        """Writes the report; a sentence where it cannot be written."""
        failure = None
        try:
            self._write_report(results, failures)
        except OSError as error:
            failure = (
                f"the report could not be written ({error.strerror or error}); free space, "
                "and launch again to repeat it"
            )
        return distributed.broadcast(failure)

    def _write_report(self, results: Sequence[Any], failures: Mapping[str, str]) -> None:
        accounting = self._batches.accounting()
        if not distributed.is_first():
            return
        write_report(
            self._output_dir,
            title=self._output_dir.name,
            training=summarize_training(self._log.step_records(), self.program.num_parameters),
            evaluation={key: value for result in results for key, value in result.metrics.items()},
            evaluators=self._evaluators_text(),
            failures=failures,
            samples=[sample for result in results for sample in result.samples],
            accounting=accounting,
        )

    def _evaluators_text(self) -> str:
        """The configs of the evaluators, as a text that tells different ones apart."""
        return "".join(
            f"[{name}]\n{evaluator.config.debug_string()}\n"
            for name, evaluator in self._evaluators.items()
        )


def _raise_if_some_failed(name: str, failure: Exception | None) -> None:
    """Where an evaluation failed in some processes only, these and the others cannot go on."""
    if distributed.process_count() == 1:
        return
    reason = None if failure is None else _reason(failure)
    try:
        reasons = distributed.exchange(reason, patience=_EVALUATION_PATIENCE_SECONDS)
    except RuntimeError:
        if failure is None:
            raise
        raise RuntimeError(f"evaluation {name} failed in this process only: {reason}") from failure
    failed = [process for process, each in enumerate(reasons) if each is not None]
    if failed and len(failed) < len(reasons):
        raise RuntimeError(
            f"evaluation {name} failed in process {failed[0]} only: {reasons[failed[0]]}"
        )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
