"""The root config of a run, which builds the input, the evaluators and the trainer.

`resolve` fills in fields that must agree between parts, so that each value is set in one place:

    input.data_dir                      -> data_dir of the tokenizer, of all sources and of initial
                                           weights
    trainer.loss                        -> the objective, which fills in what its model and its
                                           batches must agree on
    trainer.max_steps                   -> trainer.optimizer.decay_steps
    trainer.initial_weights             -> model defaults that have changed since the weights were
                                           trained keep their old values
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mm1_jax import small_config
from mm1_jax.checkpoints.initial_weights import raise_if_parts_overlap, with_stored_defaults
from mm1_jax.config import (
    REQUIRED,
    Configurable,
    InstantiableConfig,
    Required,
    RequiredFieldMissingError,
    check_values,
    close_names,
    config_class,
    fill,
    missing_fields,
)
from mm1_jax.data.mixed_input import MixedInput
from mm1_jax.evals.evaluator import Evaluator
from mm1_jax.multihost import distributed
from mm1_jax.storage import raise_if_remote
from mm1_jax.train.contracts import check_step
from mm1_jax.train.objective import Objective
from mm1_jax.train.program import Program
from mm1_jax.train.trainer import Trainer


class Experiment(Configurable):
    """One training run: a model, its data, its training and its evaluation."""

    @config_class
    class Config(Configurable.Config):
        # A model that the objective of `trainer.loss` trains: an `MM1` for next-token prediction.
        model: Required[InstantiableConfig] = REQUIRED
        # Packed rows (`Input`), or pictures with a caption each (`PairInput`).
        input: Required[MixedInput.Config] = REQUIRED
        trainer: Required[Trainer.Config] = REQUIRED
        evals: dict[str, Evaluator.Config] = {}

    @staticmethod
    def resolve(cfg: Any) -> Any:
        """Returns a copy of `cfg` with the fields that must agree filled in.

        Raises:
            ValueError: A required field is unset, a value has a wrong type or is out of range, a
                path is not local, or two fields disagree.
        """
        cfg = cfg.clone()
        check_values(cfg)
        _raise_if_incomplete(cfg)
        cfg.visit(_raise_if_not_local)
        for part in (cfg.input, *cfg.evals.values(), cfg.trainer):
            fill(part, "data_dir", cfg.input.data_dir)
        raise_if_parts_overlap(cfg.trainer.initial_weights)
        cfg.model = with_stored_defaults(cfg.model, cfg.trainer.initial_weights)
        cfg.trainer.loss.klass.objective.resolve(cfg)
        optimizer = cfg.trainer.optimizer
        if optimizer.learning_rate is None:
            raise ValueError(
                "trainer.optimizer.learning_rate=None: MM1's law gives it for a decoder alone; set "
                "a number"
            )
        if optimizer.decay_steps is None:
            optimizer.decay_steps = cfg.trainer.max_steps
        return cfg

    @staticmethod
    def small(cfg: Any, note: Callable[[str], None] = lambda line: None) -> Any:
        """A copy of `cfg` of the same structure at sizes for a laptop (`small_config`)."""
        return small_config.small(cfg, note)

    def __init__(self, cfg: Config, *, output_dir: Path):
        super().__init__(cfg)
        cfg = self.resolve(cfg)
        self.check(cfg)
        # One file per process, because only one process may write to a file.
        process = distributed.process_index()
        suffix = f".process_{process:05}" if process else ""
        self.input = cfg.input.instantiate(
            split="train",
            quarantine_path=output_dir / f"quarantine{suffix}.jsonl",
            num_steps=cfg.trainer.max_steps,
            hosts=distributed,
        )
        objective = self.objective(cfg)
        self.evaluators: dict[str, Evaluator] = {
            name: evaluator.instantiate(
                input=self.input,
                **({"objective": objective} if evaluator.klass.takes_objective else {}),
            )
            for name, evaluator in cfg.evals.items()
        }
        self.check_parts(cfg, self.input, self.evaluators)
        self._resolved = cfg
        self.trainer = cfg.trainer.instantiate(
            objective=objective,
            input=self.input,
            evaluators=self.evaluators,
            output_dir=output_dir,
        )

    def fingerprint(self) -> dict[str, Any]:
        """Returns digests of all data and weights by name, regardless of their location."""
        trainer = self._resolved.trainer
        weights = {part: each.instantiate() for part, each in trainer.initial_weights.items()}
        if trainer.initial_adapters is not None:
            weights["adapters"] = trainer.initial_adapters.instantiate()
        return {
            **{f"data of input: {name}": x for name, x in self.input.fingerprint().items()},
            "steps of input.snapshot": self.input.snapshot and self.input.snapshot.num_steps,
            **{f"data of evals.{name}": x.fingerprint() for name, x in self.evaluators.items()},
            **{f"weights of {part}": each.fingerprint() for part, each in weights.items()},
        }

    @staticmethod
    def check(cfg: Any) -> None:
        """Traces a step of a resolved `cfg` without a device; raises ValueError if a part fails."""
        check_step(Experiment.objective(cfg), cfg.trainer.optimizer)

    @staticmethod
    def check_parts(cfg: Any, input: Any, evaluators: Mapping[str, Any]) -> None:
        """Raises ValueError if the input or the evaluators contradict the rest of `cfg`."""
        cfg.trainer.loss.klass.objective.check_parts(cfg, input)
        snapshot = input.snapshot
        if snapshot is not None and snapshot.num_steps < cfg.trainer.max_steps:
            raise ValueError(
                f"input.snapshot={str(snapshot.folder)!r} has {snapshot.num_steps} steps, and "
                f"trainer.max_steps is {cfg.trainer.max_steps}; make a longer snapshot with "
                "`python -m mm1_jax snapshot`, or train for as many steps as it has"
            )
        _check_best_metric(cfg.trainer.checkpointer.best_metric, evaluators)

    @staticmethod
    def finished(cfg: Any, output_dir: Path) -> str | None:
        """Returns a line about a finished run of a resolved `cfg`, without reading its data."""
        return Trainer.finished(cfg.trainer, cfg.model, cfg.evals, output_dir)

    def run(self) -> Any:
        """Trains, evaluates and reports; resumes if `output_dir` holds a checkpoint."""
        return self.trainer.run()

    def dry_run(self) -> str:
        """Compiles the step and loads the first batch, without training; returns a report."""
        return self.trainer.dry_run()

    @staticmethod
    def objective(cfg: Any) -> Objective:
        """Returns the objective of a resolved `cfg`: model, batches and loss."""
        return cfg.trainer.loss.klass.objective.of(cfg.model, cfg.trainer.loss, cfg.input)

    @staticmethod
    def program(cfg: Any, devices: Sequence[Any]) -> Program:
        """Returns the program of a run on these devices, which may be abstract."""
        return Program(Trainer.program_spec(cfg.trainer, Experiment.objective(cfg)), devices)


def _check_best_metric(metric: str | None, evaluators: Mapping[str, Any]) -> None:
    """Checks the best metric against all evaluators, whose benchmarks also try their first task."""
    names = [evaluator.metric_names() for evaluator in evaluators.values()]
    known = [name for each in names for name in each or ()]
    if metric is None or metric in known or None in names:
        return
    hint = close_names(metric, known) or known
    expected = f"one of {', '.join(hint)}" if known else "None, as there are no evals"
    raise ValueError(
        f"trainer.checkpointer.best_metric={metric!r}: no evaluator reports it, expected {expected}"
    )


def _raise_if_incomplete(cfg: Any) -> None:
    missing = missing_fields(cfg)
    if missing:
        raise RequiredFieldMissingError(
            f"required fields are not set: {', '.join(missing)}; set each in the experiment, or "
            "with --config.PATH=VALUE (a field that a constructor sets is declared `= derived()`)"
        )


def _raise_if_not_local(path: str, value: Any) -> None:
    """Raises ValueError if a field for local files names an object store, such as gs://."""
    name = re.sub(r"\[.*", "", path.rpartition(".")[2])
    if isinstance(value, str) and name.endswith(("dir", "path", "folder", "file", "snapshot")):
        raise_if_remote(path, value)
