"""Trainer: the config of a training run, and the setup of its components.

All outputs are in one folder:

    metrics.jsonl        one object per step
    evaluations.jsonl    one object per evaluator and step at which it ran
    checkpoints/         training state and data state of the last few saves
    tensorboard/         the same metrics, and images with the model's answers
    goodput.json         time spent per phase, over all launches
    hosts/               status of each process, one line each
    report.md  report.json  samples.png      written at the end, with report.evals.txt: the configs
                         of the evaluators

A launch into the folder of an interrupted run resumes it with bit-identical batches and losses. A
launch into the folder of a finished run only evaluates, and only if the evaluators have changed or
the report is incomplete.
"""

import contextlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import jax

from mm1_jax.checkpoints.checkpointer import Checkpointer
from mm1_jax.checkpoints.initial_adapters import InitialAdapters
from mm1_jax.checkpoints.initial_weights import MODEL, InitialWeights
from mm1_jax.config import REQUIRED, Configurable, Required, config_class
from mm1_jax.field_types import PositiveInt, Range
from mm1_jax.layers.parameter_paths import parameter_path
from mm1_jax.models.flops import ForwardFlops
from mm1_jax.multihost import distributed
from mm1_jax.parallel.parallelism import MeshRule, Parallelism
from mm1_jax.stored_config import Scalar, flat_fields, former_defaults
from mm1_jax.train.contracts import check_learning_rate
from mm1_jax.train.dry_run import dry_run
from mm1_jax.train.evaluations import Evaluations, evaluators_text
from mm1_jax.train.guards.anomalies import Anomalies, ExcludedSteps
from mm1_jax.train.guards.corruption import Corruption
from mm1_jax.train.guards.stop import StopSignals
from mm1_jax.train.guards.watchdog import Watchdog
from mm1_jax.train.host_batches import HostBatches
from mm1_jax.train.logs.goodput import Goodput
from mm1_jax.train.logs.profile import Profile
from mm1_jax.train.logs.progress import Progress, print_line
from mm1_jax.train.logs.report import is_reported
from mm1_jax.train.logs.run_log import RunLog
from mm1_jax.train.logs.utilisation import Utilisation
from mm1_jax.train.logs.wandb_run import WandbRun
from mm1_jax.train.loop import Loop
from mm1_jax.train.loss import Loss
from mm1_jax.train.objective import Objective, TrainingLoss
from mm1_jax.train.optimizers.adamw import AdamW
from mm1_jax.train.optimizers.optimizer import Optimizer
from mm1_jax.train.program import Program, ProgramSpec
from mm1_jax.train.saves import Saves
from mm1_jax.train.train_state import TrainState


class Trainer(Configurable):
    """Trains a model on the batches of an input, and evaluates it."""

    @config_class
    class Config(Configurable.Config):
        max_steps: Required[PositiveInt] = REQUIRED
        # Seed of the initial parameters; the data pipeline has its own seed.
        seed: Annotated[int, Range(at_least=-(2**63), below=2**63)] = 0
        # Parts of the model, by path, that start from other checkpoints; all others are initialized
        # randomly. The key "model" is the whole model.
        initial_weights: dict[str, InitialWeights.Config] = {}
        # Adapters imported from PEFT, for a model with `lora`, loaded on top of these weights.
        initial_adapters: InitialAdapters.Config | None = None
        optimizer: Optimizer.Config = AdamW.default_config()
        # Its class decides what is trained; see `objective.py`.
        loss: TrainingLoss.Config = Loss.default_config()
        # Parallelism: the first rule that matches the kind and number of devices, overridden by the
        # fields set in `parallelism`.
        mesh_rules: list[MeshRule] = []
        parallelism: Parallelism.Config = Parallelism.default_config()
        checkpointer: Checkpointer.Config = Checkpointer.default_config()
        progress: Progress.Config = Progress.default_config()
        # Interval of TensorBoard summaries in steps; `metrics.jsonl` has every step.
        summary_every_n_steps: PositiveInt = 10
        # Records gradient and update norms per part of the model at every step.
        norms_by_part: bool = False
        anomalies: Anomalies.Config = Anomalies.default_config()
        watchdog: Watchdog.Config = Watchdog.default_config()
        corruption: Corruption.Config = Corruption.default_config()
        profile: Profile.Config = Profile.default_config()
        wandb: WandbRun.Config | None = None

    def __init__(
        self,
        cfg: Config,
        *,
        objective: Objective,
        input: Any,
        evaluators: Mapping[str, Any],
        output_dir: Path,
        devices: Sequence[Any] | None = None,
    ):
        """Sets up everything that needs no arrays.

        Args:
            input: A `data.mixed_input.MixedInput`.
            evaluators: `evals.evaluator.Evaluator`s by name.
            devices: Devices to train on; defaults to all.
        """
        super().__init__(cfg)
        self._objective = objective
        self._input = input
        self._evaluators = evaluators
        self._output_dir = output_dir
        # Check the configs before any device is used.
        objective.loss.instantiate()
        cfg.optimizer.instantiate()
        self._anomalies: Anomalies = cfg.anomalies.instantiate()
        devices = jax.devices() if devices is None else devices
        self.program = Program(self.program_spec(cfg, objective), devices)
        check_learning_rate(self.program.optimizer, cfg.max_steps)
        self._utilisation = Utilisation(
            _flops(objective), num_rows=objective.num_rows, devices=devices
        )
        self._corruption: Corruption = cfg.corruption.instantiate(
            mesh=self.program.mesh, state=self.program.abstract_state
        )

    @staticmethod
    def program_spec(cfg: "Trainer.Config", objective: Objective) -> ProgramSpec:
        """Returns the spec of the program that a trainer with this config compiles."""
        return ProgramSpec(
            objective,
            optimizer=cfg.optimizer,
            parallelism=cfg.parallelism,
            mesh_rules=cfg.mesh_rules,
            anomalies=cfg.anomalies,
            norms_by_part=cfg.norms_by_part,
        )

    @staticmethod
    def finished(
        cfg: "Trainer.Config", model: Any, evaluators: Mapping[str, Any], output_dir: Path
    ) -> str | None:
        """Returns a line about a run that is trained and reported; None if there is work left.

        It needs neither the data of the run nor devices.

        Args:
            model: Config of the model.
            evaluators: Configs of the evaluators by name.
        """
        if not (output_dir / "report.json").exists():
            return None
        with closing(_open_checkpoints(cfg, model, output_dir)) as checkpointer:
            step = checkpointer.latest_step()
            line = _finished(cfg, step, evaluators, output_dir)
            # A run that resumes reads the checksums later, once.
            if line is not None and checkpointer.newest_intact_step() != step:
                return None
        return line

    def run(self) -> None:
        """Trains up to `max_steps`, from the newest checkpoint if there is one, and reports.

        Raises:
            SystemExit, NonFiniteLoss: See `Loop.run`.
        """
        self._output_dir.mkdir(parents=True, exist_ok=True)
        goodput = Goodput(self._output_dir if distributed.is_first() else None)
        with contextlib.ExitStack() as stack:
            checkpointer = stack.enter_context(
                closing(_open_checkpoints(self._config, self._objective.model, self._output_dir))
            )
            saved_step = checkpointer.newest_intact_step()
            evaluators = {name: each.config for name, each in self._evaluators.items()}
            line = _finished(self._config, saved_step, evaluators, self._output_dir)
            if line is not None:
                if distributed.is_first():
                    print_line(line)
                return
            self._open(stack, checkpointer, goodput, saved_step or 0).run(saved_step)

    def dry_run(self) -> str:
        """Compiles the step and loads the first batch, without training; returns a report."""
        return dry_run(self.program, self._input)

    def _open(
        self, stack: contextlib.ExitStack, checkpointer: Checkpointer, goodput: Goodput, step: int
    ) -> Loop:
        """Opens the components of a run that starts after `step` steps; `stack` closes them."""
        cfg, program = self._config, self.program
        watchdog = stack.enter_context(
            cfg.watchdog.instantiate(output_dir=self._output_dir, goodput=goodput)
        )
        log = stack.enter_context(closing(self._make_log(step)))
        logged = distributed.broadcast(log.evaluated)
        excluded = ExcludedSteps(self._output_dir)
        profile = stack.enter_context(
            closing(cfg.profile.instantiate(directory=self._output_dir / "profile"))
        )
        batches = stack.enter_context(closing(HostBatches(self._input, program.rows)))
        stop = stack.enter_context(StopSignals())
        saves = Saves(checkpointer, batches, log=log, goodput=goodput, watchdog=watchdog)
        evaluations = Evaluations(
            self._evaluators,
            max_steps=cfg.max_steps,
            program=program,
            saves=saves,
            log=log,
            goodput=goodput,
            watchdog=watchdog,
            stop=stop,
            logged=[(step, name) for step, name in logged],
        )
        return Loop(
            output_dir=self._output_dir,
            max_steps=cfg.max_steps,
            program=program,
            first_state=lambda: self._first_state(log),
            batches=batches,
            saves=saves,
            evaluations=evaluations,
            log=log,
            goodput=goodput,
            profile=profile,
            watchdog=watchdog,
            stop=stop,
            anomalies=self._anomalies,
            corruption=self._corruption,
            excluded=excluded,
        )

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

    def _description(self) -> dict[str, Scalar]:
        """Returns the config fields of model and trainer by path."""
        parts = {"model": self._objective.model, "trainer": self._config}
        return {
            f"{name}.{path}": value
            for name, cfg in parts.items()
            for path, value in flat_fields(cfg).items()
        }

    def _first_state(self, log: RunLog) -> TrainState:
        """Creates the initial state, with the parts that start from other checkpoints loaded."""
        model = self._objective.model
        params = {
            parameter_path(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(
                self.program.abstract_state.params
            )
        }
        loaded: dict[str, jax.Array] = {}
        for part, weights in self._config.initial_weights.items():
            loaded |= weights.instantiate().load(part, params, model)
            name = "" if part == MODEL else part.partition("/")[0] + "."
            kept = [each for each in former_defaults(model) if each.startswith(name)]
            log.message("; keeps ".join([f"{part} starts from {weights.path}", *kept]))
        adapters = self._config.initial_adapters
        if adapters is not None:
            loaded |= adapters.instantiate().load(params, model)
            log.message(f"adapters start from {adapters.path}")
        return self.program.first_state(jax.random.key(self._config.seed), loaded)


def _open_checkpoints(cfg: Trainer.Config, model: Any, output_dir: Path) -> Checkpointer:
    return cfg.checkpointer.instantiate(
        directory=output_dir / "checkpoints",
        model=model,
        report=lambda text: distributed.is_first() and print_line(text),
    )


def _finished(
    cfg: Trainer.Config, step: int | None, evaluators: Mapping[str, Any], output_dir: Path
) -> str | None:
    """Returns a line about a run that has nothing left to do after its save of `step` steps."""
    if step is None or step < cfg.max_steps:
        return None
    text = evaluators_text(evaluators)
    if not distributed.broadcast(distributed.is_first() and is_reported(output_dir, step, text)):
        return None
    return f"finished already; report: {output_dir / 'report.md'}"


def _flops(objective: Objective) -> ForwardFlops | None:
    try:
        return objective.flops()
    except ValueError:
        # A layer has no FLOPs rule, so utilization is not reported.
        return None
