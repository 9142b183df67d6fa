"""The root config of a run, which builds the input, the evaluators and the trainer.

`resolve` fills in fields that must agree between parts, so that each value is set in one place:

    input.data_dir                      -> data_dir of the tokenizer, of all sources and of initial
                                           weights
    input.chat_format                   -> chat_format of all documents and tasks that are
                                           conversations
    input.tokenizer                     -> model.decoder.vocab_size, model.image_token
    input.image_group_rows              -> model.image_group_rows
    model.connector.num_image_tokens    -> input.num_image_tokens
    model.vision_encoder.image_size     -> input.image_size
    model.vision_encoder = None         -> no images in the input
    size of model.decoder               -> trainer.optimizer.learning_rate (MM1, section 3.1)
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
    Required,
    RequiredFieldMissingError,
    check_values,
    close_names,
    config_class,
    fill,
    missing_fields,
)
from mm1_jax.data.input import Input
from mm1_jax.evals.evaluator import Evaluator
from mm1_jax.field_types import class_name
from mm1_jax.models.decoder import num_non_embedding_parameters
from mm1_jax.models.mm1 import MM1, reads_images
from mm1_jax.multihost import distributed
from mm1_jax.storage import raise_if_remote
from mm1_jax.train.contracts import check_step
from mm1_jax.train.next_token import NextToken
from mm1_jax.train.optimizers.learning_rate import mm1_learning_rate
from mm1_jax.train.program import Program
from mm1_jax.train.trainer import Trainer


class Experiment(Configurable):
    """One training run: a model, its data, its training and its evaluation."""

    @config_class
    class Config(Configurable.Config):
        model: Required[MM1.Config] = REQUIRED
        input: Required[Input.Config] = REQUIRED
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
        _raise_if_a_part_is_another(cfg)
        for part in (cfg.input, *cfg.evals.values()):
            fill(part, "chat_format", cfg.input.chat_format)
        for part in (cfg.input, *cfg.evals.values(), cfg.trainer):
            fill(part, "data_dir", cfg.input.data_dir)
        raise_if_parts_overlap(cfg.trainer.initial_weights)
        cfg.model = with_stored_defaults(cfg.model, cfg.trainer.initial_weights)
        vocabulary = cfg.input.tokenizer.klass.vocabulary(cfg.input.tokenizer)
        _agree(cfg, "model.decoder.vocab_size", vocabulary.vocab_size, "input.tokenizer")
        _agree(cfg, "model.image_token", vocabulary.image_token, "input.tokenizer")
        _agree(cfg, "model.image_group_rows", cfg.input.image_group_rows, "input.image_group_rows")
        if reads_images(cfg.model):
            if not cfg.input.max_images:
                raise ValueError(
                    "input.max_images=0: the model reads images, and rows have no room for one; "
                    "set it to 1 or more, or model.vision_encoder=None and model.connector=None"
                )
            tokens, size = cfg.model.connector.num_image_tokens, cfg.model.vision_encoder.image_size
            _agree(cfg, "input.num_image_tokens", tokens, "model.connector.num_image_tokens")
            _agree(cfg, "input.image_size", size, "model.vision_encoder.image_size")
        else:
            for name in ("max_images", "num_image_tokens", "image_size"):
                _agree(cfg, f"input.{name}", 0, "model.vision_encoder=None")
            if cfg.input.tiling is not None:
                raise ValueError("input.tiling: the model reads no images to tile; set it to None")
        optimizer = cfg.trainer.optimizer
        if optimizer.learning_rate is None:
            num_parameters = num_non_embedding_parameters(cfg.model.decoder)
            optimizer.learning_rate = mm1_learning_rate(num_parameters)
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
        )
        self.evaluators: dict[str, Evaluator] = {
            name: evaluator.instantiate(input=self.input) for name, evaluator in cfg.evals.items()
        }
        self.check_parts(cfg, self.input, self.evaluators)
        self._resolved = cfg
        self.trainer = cfg.trainer.instantiate(
            objective=self.objective(cfg),
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
        tokenizer = input.tokenizer
        for name, made, declared in (
            ("vocab_size", tokenizer.vocab_size, cfg.model.decoder.vocab_size),
            ("image_token", tokenizer.image_token, cfg.model.image_token),
        ):
            if made != declared:
                raise ValueError(
                    f"input.tokenizer: {type(tokenizer).__name__} has {name}={made}, and its "
                    f"`vocabulary` says {declared}, which the model is built for"
                )
        snapshot = input.snapshot
        if snapshot is not None and snapshot.num_steps < cfg.trainer.max_steps:
            raise ValueError(
                f"input.snapshot={str(snapshot.folder)!r} has {snapshot.num_steps} steps, and "
                f"trainer.max_steps is {cfg.trainer.max_steps}; make a longer snapshot with "
                "`python -m mm1_jax snapshot`, or train for as many steps as it has"
            )
        _check_best_metric(cfg.trainer.checkpointer.best_metric, evaluators)

    def run(self) -> Any:
        """Trains, evaluates and reports; resumes if `output_dir` holds a checkpoint."""
        return self.trainer.run()

    def dry_run(self) -> str:
        """Compiles the step and loads the first batch, without training; returns a report."""
        return self.trainer.dry_run()

    @staticmethod
    def objective(cfg: Any) -> NextToken:
        """Returns the objective of a resolved `cfg`: model, batches and loss."""
        return NextToken.of(cfg.model, cfg.trainer.loss, cfg.input)

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


# Fields and class attributes that an experiment or a model reads from its parts.
_NEEDED = {
    "model.vision_encoder": ("image_size", "patch_size", "model_dim"),
    "model.connector": ("num_image_tokens",),
    "model.decoder": ("vocab_size", "model_dim", "num_layers", "stack"),
    "input.tokenizer": ("klass.vocabulary",),
}


def _raise_if_a_part_is_another(cfg: Any) -> None:
    """Raises ValueError if a part is the config of another kind of part."""
    for path, names in _NEEDED.items():
        part = cfg.get_recursively(path.split("."))
        for name in names:
            holder, _, attribute = name.rpartition(".")
            if part is not None and not hasattr(getattr(part, holder, part), attribute):
                raise ValueError(
                    f"{path} is a config of {class_name(type(part))}, which has no {attribute}; "
                    f"expected that of a {path.rpartition('.')[2].replace('_', ' ')}"
                )


def _raise_if_not_local(path: str, value: Any) -> None:
    """Raises ValueError if a field for local files names an object store, such as gs://."""
    name = re.sub(r"\[.*", "", path.rpartition(".")[2])
    if isinstance(value, str) and name.endswith(("dir", "path", "folder", "file", "snapshot")):
        raise_if_remote(path, value)


def _agree(cfg: Any, path: str, value: Any, source: str) -> None:
    """Sets the field at `path` to `value`, or raises ValueError if it has another value."""
    present = cfg.get_recursively(path.split("."))
    if present is None or present is REQUIRED:
        cfg.set_recursively(path.split("."), value=value)
    elif present != value:
        raise ValueError(
            f"{path} is {present!r}, but {source} makes it {value!r}: "
            f"leave {path} unset and change only {source}"
        )
