"""Interface of evaluators, which return metrics and samples of a model at chosen steps of a run."""

import abc
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from mm1_jax.config import Configurable, config_class
from mm1_jax.data.examples import ExampleBuilder
from mm1_jax.data.images import ImageTransform
from mm1_jax.data.input import Input, example_builder
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer, check_tokenizer
from mm1_jax.field_types import NonNegativeInt


@dataclass(frozen=True)
class Sample:
    """One question and the model's answer, for people to look at.

    Attributes:
        image: The pictures of the question, side by side; None for a question without pictures.
        prompt: The text that the model continues.
        reference: The right answer.
        answer: The model's answer.
        correct: Whether the benchmark accepts the answer; None if that is unknown.
        benchmark: The name of the benchmark in metric keys.
    """

    image: np.ndarray | None
    prompt: str
    reference: str
    answer: str
    correct: bool | None = None
    benchmark: str = ""


@dataclass(frozen=True)
class EvalResult:
    """Metrics by `name/shots/metric`, and samples."""

    metrics: dict[str, float]
    samples: list[Sample] = field(default_factory=list)


@dataclass(frozen=True)
class PromptInput:
    """The parts of an Input that build prompts. Creating them reads no training data."""

    tokenizer: Tokenizer
    image_transform: ImageTransform | None
    example_builder: ExampleBuilder

    @classmethod
    def of(cls, cfg: Input.Config) -> "PromptInput":
        """Builds the parts from the resolved config of an input."""
        tokenizer = cfg.tokenizer.instantiate()
        check_tokenizer(tokenizer)
        transform = None
        if cfg.max_images:
            transform = cfg.image_transform.set(image_size=cfg.image_size).instantiate()
        return cls(tokenizer, transform, example_builder(cfg, tokenizer))


class EveryNSteps(Configurable):
    """A schedule: every `n` steps and after the last one. `n=0` means only after the last one."""

    @config_class
    class Config(Configurable.Config):
        n: NonNegativeInt = 0

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        self._n = cfg.n

    def due(self, step: int, max_steps: int) -> bool:
        """Returns True if the evaluator runs after `step` of `max_steps` steps."""
        return step >= max_steps or (self._n > 0 and step > 0 and step % self._n == 0)


class Evaluator(Configurable, abc.ABC):
    """Evaluates a model; the interface of all evaluators in this package.

    An evaluator is built once with the train input, or with the parts of it whose tokenizer, sizes
    and image transform it shares, and runs on many states of the model. All processes run it and
    get the same result.

    Attributes:
        takes_objective: Whether a run builds it with its training objective, too: `objective=`.
    """

    takes_objective: ClassVar[bool] = False

    @config_class
    class Config(Configurable.Config):
        # Schedule of evaluations during training.
        run: EveryNSteps.Config = EveryNSteps.default_config()

    def __init__(self, cfg: Config, *, input: Any):
        super().__init__(cfg)
        self._schedule = cfg.run.instantiate()

    def due(self, step: int, max_steps: int) -> bool:
        """Returns True if the evaluator runs after `step` of `max_steps` steps."""
        return self._schedule.due(step, max_steps)

    def fingerprint(self) -> str:
        """Digest of the data read besides the train input; empty if it is only read in `run`."""
        return ""

    @abc.abstractmethod
    def run(self, model: Any) -> EvalResult: ...

    def metric_names(self) -> Collection[str] | None:
        """The keys of the metrics that `run` may return; None if they are not known in advance."""
        return None


def check_result(evaluator: Any, result: Any) -> None:
    """Raises ValueError if an evaluator returned anything but numbers by name."""
    name = type(evaluator).__name__
    if not isinstance(getattr(result, "metrics", None), Mapping) or not hasattr(result, "samples"):
        raise ValueError(f"{name}.run returned a {type(result).__name__}, expected an EvalResult")
    for key, value in result.metrics.items():
        if not isinstance(key, str) or not isinstance(value, int | float | np.number):
            raise ValueError(
                f"{name}.run returned the metric {key!r}: {value!r}, expected a number"
            )
