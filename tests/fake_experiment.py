"""A fake experiment for launches: shaped like the real one, with nothing to build or train."""

import enum
from pathlib import Path
from typing import Literal

from mm1_jax.config import (
    REQUIRED,
    Configurable,
    Required,
    RequiredFieldMissingError,
    config_class,
)


class Fit(enum.Enum):
    STRETCH = "stretch"
    PAD = "pad"


class Connector(Configurable):
    @config_class
    class Config(Configurable.Config):
        num_image_tokens: int = 4


class Model(Configurable):
    @config_class
    class Config(Configurable.Config):
        connector: Connector.Config = Connector.default_config()
        dtype: Literal["float32", "bfloat16"] = "float32"
        head_dim: int | None = None
        moe: Connector.Config | None = None
        tied: bool = True


class Stream(Configurable):
    @config_class
    class Config(Configurable.Config):
        name: Required[str] = REQUIRED
        weight: int = 1


class Input(Configurable):
    @config_class
    class Config(Configurable.Config):
        streams: list[Stream.Config] = []
        num_image_tokens: int | None = None
        num_workers: int = 0
        path: str | None = None
        fit: Fit = Fit.STRETCH
        shares: dict[str, float] = {"captions": 0.5}
        mean: tuple[float, ...] = (0.5, 0.5)


class Optimizer(Configurable):
    @config_class
    class Config(Configurable.Config):
        learning_rate: float | None = None
        clip: float = 1
        decay_steps: int | None = None


class Checkpointer(Configurable):
    @config_class
    class Config(Configurable.Config):
        location: str | None = None


class Trainer(Configurable):
    @config_class
    class Config(Configurable.Config):
        checkpointer: Checkpointer.Config = Checkpointer.default_config()
        max_steps: Required[int] = REQUIRED
        seed: int = 0
        optimizer: Optimizer.Config = Optimizer.default_config()


class Evaluator(Configurable):
    @config_class
    class Config(Configurable.Config):
        num_examples: int = 8
        shots: list[int] = [0, 4]


class FakeExperiment(Configurable):
    @config_class
    class Config(Configurable.Config):
        model: Model.Config = Model.default_config()
        input: Input.Config = Input.default_config()
        trainer: Trainer.Config = Trainer.default_config()
        evals: dict[str, Evaluator.Config] = {}

    @staticmethod
    def resolve(cfg):
        cfg = cfg.clone()
        if cfg.trainer.max_steps is REQUIRED:
            raise RequiredFieldMissingError("not set: trainer.max_steps")
        num_image_tokens = cfg.model.connector.num_image_tokens
        if cfg.input.num_image_tokens not in (None, num_image_tokens):
            raise ValueError("input.num_image_tokens disagrees with model.connector")
        cfg.input.num_image_tokens = num_image_tokens
        if cfg.trainer.optimizer.decay_steps is None:
            cfg.trainer.optimizer.decay_steps = cfg.trainer.max_steps
        return cfg

    def __init__(self, cfg: Config, *, output_dir: Path):
        super().__init__(cfg)
        self.output_dir = output_dir
        if cfg.input.path is not None:
            raise ValueError(f"input.path={cfg.input.path}: no such file")

    def run(self):
        """Trains nothing, but writes a checkpoint folder as a run does."""
        if self.config.trainer.seed == 13:
            raise FloatingPointError("step 1: loss nan")
        checkpoint = self.output_dir / "checkpoints" / str(self.config.trainer.max_steps)
        checkpoint.mkdir(parents=True, exist_ok=True)


def fake_small():
    """A fake of ten steps.

    A second paragraph.
    """
    cfg = FakeExperiment.default_config()
    cfg.trainer.max_steps = 10
    cfg.input.streams = [Stream.default_config().set(name=name) for name in ("captions", "text")]
    cfg.evals = {"digits_vqa": Evaluator.default_config()}
    return cfg


def fake_large():
    return fake_small().set(trainer=Trainer.default_config().set(max_steps=1000))


def fake_unfinished():
    cfg = fake_small()
    return cfg.set(trainer=Trainer.default_config())


def named_configs():
    return {f.__name__: f for f in (fake_small, fake_large, fake_unfinished)}
