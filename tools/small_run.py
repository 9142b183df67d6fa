"""A run that takes seconds, into which `tools/inject_faults.py` injects faults.

    python -m mm1_jax.launch --module=small_run --config=small_run   (with tools/ in PYTHONPATH)

It has the parts of a real run (input with packing and workers, trainer, checkpoints, evaluation)
except for the model: two matrices, which compile in a second. The evaluation is a digest of the
parameters, which shows a difference in any bit. `fault_injection.small_encoders` has runs of
encoders.

The environment variable FAULT injects a fault, as `kind:process:step`:

    nan         the images of the step make the loss NaN
    stall       the process hangs in the middle of the step
    raise       the input raises an error
    slow        every batch takes a while, which leaves time to disturb the run
    full_disk   the process can write at most 16 kB per file; `kind:process:step:last` sets an end
    no_images   the process has no image in any of its rows
"""

import os
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# tensorboardX would import torch if installed, which takes longer than the run.
sys.modules["torch"] = None  # type: ignore[assignment]

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict

from mm1_jax.batch import Batch, Document, Image, Record, Text
from mm1_jax.checkpoints.checkpointer import Checkpointer
from mm1_jax.config import Configurable, InstantiableConfig, config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.text import text_document
from mm1_jax.data.input import Input
from mm1_jax.data.mixed_input import MixedInput
from mm1_jax.data.mixture import CorpusWeight, Stream
from mm1_jax.data.sources.base import Source
from mm1_jax.data.sources.jsonl import JsonlSource
from mm1_jax.layers.module import Module, param
from mm1_jax.multihost import distributed
from mm1_jax.train.guards.anomalies import Anomalies
from mm1_jax.train.trainer import Trainer

_WORDS = ["a", "red", "circle", "left", "of", "two", "small", "blue", "squares"]
_IMAGE_SIZE = 8


class DrawnSource(Source):
    """Draws a few words from the record's index, and an image for odd ones."""

    @config_class
    class Config(Source.Config):
        num_records: int = 64

    def __init__(self, cfg: Config, *, split: str):
        super().__init__(cfg, split=split)
        self._num_records = cfg.num_records

    def __len__(self) -> int:
        return self._num_records

    def __getitem__(self, index: int) -> Record:
        rng = np.random.default_rng(index)
        words = [_WORDS[i] for i in rng.integers(0, len(_WORDS), rng.integers(2, 10))]
        pixels = rng.integers(0, 256, (_IMAGE_SIZE, _IMAGE_SIZE, 3), np.uint8)
        return {"text": " ".join(words), "images": [pixels] if index % 2 else []}


def drawn_document(record: Record) -> Document:
    return Document((*(Image(pixels) for pixels in record["images"]), Text(record["text"])))


class Bigrams(Module):
    """Predicts the next token from the last one and the mean pixel of the row."""

    @config_class
    class Config(Module.Config):
        vocab_size: int = 512
        model_dim: int = 32

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        normal = jax.nn.initializers.normal(0.1)
        shape = (cfg.vocab_size, cfg.model_dim)
        self.embedding = param(rngs, shape, ("vocab", "embed"), normal)
        self.head = param(rngs, shape[::-1], ("embed", "mlp"), normal)

    def __call__(self, batch: Batch, *, dropless: bool = False) -> Any:
        has_image = (batch.image_index >= 0)[:, :, None, None, None]
        images = batch.images.astype(jnp.float32)[batch.image_index % len(batch.images)] / 255
        brightness = jnp.mean(jnp.where(has_image, images, 0), axis=(1, 2, 3, 4))
        # No drawn image is all white; an all-white image stands for NaN.
        bad = jnp.any(jnp.all(images == 1, axis=(2, 3, 4)) & has_image[:, :, 0, 0, 0], axis=1)
        brightness = jnp.where(bad, jnp.nan, brightness)[:, None, None]
        return SimpleNamespace(hidden=self.embedding[...][batch.tokens] + brightness, router=None)

    def output_layer(self) -> Any:
        return self

    def attend(self, hidden: jax.Array) -> jax.Array:
        return hidden @ self.head[...]


class Digest(Configurable):
    """An evaluator whose metrics are digests of the parameters, exact in float64."""

    @config_class
    class Config(Configurable.Config):
        n: int = 4

    def due(self, step: int, max_steps: int) -> bool:
        return step >= max_steps or (step > 0 and step % self._config.n == 0)

    def run(self, model: nnx.Module) -> Any:
        digests = _digests(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
        metrics = {f"digest/0/{name}": float(value) for name, value in digests.items()}
        return SimpleNamespace(metrics=metrics, samples=[])


@jax.jit
def _digests(params: Any) -> dict[str, jax.Array]:
    """Returns a digest of each parameter by its path."""

    def digest(x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
        places = jnp.arange(bits.size, dtype=jnp.uint32).reshape(bits.shape) * 2 + 1
        return jnp.sum(bits * places, dtype=jnp.uint32)

    return {"/".join(path): digest(x) for path, x in flatten_dict(params).items()}


class TalkingCheckpointer(Checkpointer):
    """Prints a line when a restore begins, so that it can be interrupted."""

    def restore(self, *args: Any, **kwargs: Any) -> Any:
        print("restoring", flush=True)
        return super().restore(*args, **kwargs)


class LateAnomalies(Anomalies):
    """Processes other than 0 find a non-finite loss later than process 0."""

    def judge(self, record: Any) -> Any:
        if not distributed.is_first() and not np.isfinite(record["loss"]):
            time.sleep(1)
        return super().judge(record)


class FaultyInput:
    """An input whose iterators inject the fault in FAULT."""

    def __init__(self, input: MixedInput, fault: str):
        self._input = input
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._input, name)

    def iterator(self, *args: Any) -> Any:
        return _FaultyIterator(self._input.iterator(*args), self._fault)


class _FaultyIterator:
    def __init__(self, iterator: Any, fault: str):
        self._iterator = iterator
        self._kind, _, where = fault.partition(":")
        process, *steps = (int(number) for number in where.split(":") if number)
        self._is_mine = process == distributed.process_index()
        self._steps = range(steps[0], steps[-1] + 1) if steps else range(1 << 30)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        step = self._iterator.step
        is_due = self._is_mine and step in self._steps
        if self._kind == "full_disk" and self._is_mine:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            limit = 1 << 14 if is_due else hard
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        if not is_due:
            return batch
        if self._kind == "stall":
            time.sleep(3600)
        if self._kind == "slow":
            time.sleep(0.2)
        if self._kind == "raise":
            raise ValueError(f"a record of step {step} is at fault")
        if self._kind == "nan":
            batch.images[:] = 255
        if self._kind == "no_images":
            batch.image_index[:] = -1
            batch.images[:] = 0
        return batch


class SmallRun(Configurable):
    """Input, trainer and evaluator, connected as in `mm1_jax.experiment`."""

    @config_class
    class Config(Configurable.Config):
        model: InstantiableConfig = Bigrams.default_config()
        input: MixedInput.Config = Input.default_config()
        trainer: Trainer.Config = Trainer.default_config()
        digest: Digest.Config = Digest.default_config()

    @staticmethod
    def resolve(cfg: Any) -> Any:
        cfg = cfg.clone()
        for stream in cfg.input.streams:
            for entry in stream.corpora:
                if "data_dir" in entry.corpus.source:
                    entry.corpus.source.data_dir = cfg.input.data_dir
        cfg.trainer.optimizer.decay_steps = cfg.trainer.max_steps
        if isinstance(cfg.model, Bigrams.Config):
            vocabulary = cfg.input.tokenizer.klass.vocabulary(cfg.input.tokenizer)
            cfg.model.vocab_size = vocabulary.vocab_size
        else:
            cfg.trainer.loss.klass.objective.resolve(cfg)
        return cfg

    def __init__(self, cfg: Config, *, output_dir: Path):
        super().__init__(cfg)
        cfg = self.resolve(cfg)
        process = distributed.process_index()
        self._input: MixedInput = cfg.input.instantiate(
            split="train", quarantine_path=output_dir / f"quarantine.{process}.jsonl"
        )
        fault = os.environ.get("FAULT")
        self.trainer: Trainer = cfg.trainer.instantiate(
            objective=cfg.trainer.loss.klass.objective.of(cfg.model, cfg.trainer.loss, cfg.input),
            input=FaultyInput(self._input, fault) if fault else self._input,
            evaluators={"digest": cfg.digest.instantiate()},
            output_dir=output_dir,
        )

    def fingerprint(self) -> dict[str, Any]:
        return self._input.fingerprint()

    def run(self) -> None:
        self.trainer.run()


def small_run() -> SmallRun.Config:
    """Twelve steps of eight short rows."""
    cfg = SmallRun.default_config()
    corpus = Corpus.default_config().set(
        name="drawn", source=DrawnSource.default_config(), to_document=drawn_document
    )
    cfg.input.set(
        streams=[
            Stream.default_config().set(name="drawn", corpora=[CorpusWeight().set(corpus=corpus)])
        ],
        batch_size=8,
        max_sequence_length=48,
        max_images=2,
        num_image_tokens=4,
        image_size=_IMAGE_SIZE,
    )
    cfg.trainer.max_steps = 12
    cfg.trainer.optimizer.set(learning_rate=0.05, warmup_steps=2)
    cfg.trainer.anomalies = LateAnomalies.default_config()
    cfg.trainer.checkpointer = TalkingCheckpointer.default_config().set(every_n_steps=2)
    return cfg


def small_run_of_texts() -> SmallRun.Config:
    """The same run on a file, texts.jsonl in --data_dir."""
    cfg = small_run()
    (entry,) = cfg.input.streams[0].corpora
    entry.corpus.set(source=JsonlSource.default_config().set(path="texts.jsonl"))
    entry.corpus.to_document = text_document
    return cfg


def named_configs() -> dict[str, Any]:
    return {f.__name__: f for f in (small_run, small_run_of_texts)}
