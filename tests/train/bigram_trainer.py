"""A model, an input and an evaluator with just the interface that the trainer needs."""

import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm1_jax.batch import Batch
from mm1_jax.config import Configurable, config_class
from mm1_jax.image_buffer import ImageBuffer
from mm1_jax.layers.module import Module, param
from mm1_jax.train.host_batches import HostBatch, LoadedRows
from mm1_jax.train.loss import Loss
from mm1_jax.train.next_token import NextToken
from mm1_jax.train.trainer import Trainer

VOCAB_SIZE = 32
CORPUS_NAMES = ["captions", "text"]
_OWN_SLOTS = ImageBuffer(1, 2)


class BigramModel(Module):
    """Predicts from the last token and the mean pixel of the row, by two matrices and a scale."""

    @config_class
    class Config(Module.Config):
        model_dim: int = 8

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        normal = jax.nn.initializers.normal(0.5)
        dims = (VOCAB_SIZE, cfg.model_dim)
        self.embedding = param(rngs, dims, ("vocab", "embed"), normal)
        self.head = param(rngs, dims[::-1], ("embed", "mlp"), normal)
        self.scale = param(rngs, (cfg.model_dim,), ("embed",), jax.nn.initializers.ones)

    def __call__(self, batch: Batch, *, dropless: bool = False) -> Any:
        images = batch.images.astype(jnp.float32)[batch.image_index % len(batch.images)] / 255
        brightness = jnp.mean(images, axis=(1, 2, 3, 4))[:, None, None]
        hidden = self.embedding[...][batch.tokens] * self.scale[...][None, None] + brightness
        return SimpleNamespace(hidden=hidden, router=None)

    def output_layer(self) -> Any:
        return self

    def attend(self, hidden: jax.Array) -> jax.Array:
        return hidden @ self.head[...]


def make_batch(seed: int, rows: int = 4, length: int = 6, images: int = 2) -> Batch:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB_SIZE, (rows, length), dtype=np.int32)
    is_real = np.arange(length)[None] < rng.integers(2, length + 1, (rows, 1))
    return Batch(
        tokens=tokens,
        targets=np.roll(tokens, -1, axis=1),
        loss_mask=is_real & (rng.random((rows, length)) < 0.8),
        positions=np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)),
        segment_ids=is_real.astype(np.int32),
        corpus_ids=np.where(is_real, rng.integers(0, 2, (rows, 1)), -1).astype(np.int32),
        images=rng.integers(0, 256, (rows * images, 4, 4, 3), dtype=np.uint8),
        image_index=np.arange(rows * images, dtype=np.int32).reshape(rows, images),
    )


def make_objective(
    model: Any = None,
    loss: Any = None,
    *,
    batch: Batch | None = None,
    rows: int = 4,
    image_buffer: ImageBuffer = _OWN_SLOTS,
) -> NextToken:
    """Makes the next-token objective for batches like `make_batch(0, rows)`, or like `batch`."""
    batch = make_batch(0, rows) if batch is None else batch
    return NextToken(
        model=BigramModel.default_config() if model is None else model,
        loss=Loss.default_config() if loss is None else loss,
        batch=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch),
        image_buffer=image_buffer,
        num_corpora=len(CORPUS_NAMES),
    )


def host_batch(batch: Batch) -> HostBatch:
    """Wraps a whole batch as loaded by a single process."""
    rows = len(batch.tokens)
    return HostBatch(rows, (LoadedRows(range(rows), batch),))


class FakeIterator:
    def __init__(self, on_batch: Any):
        self.step = 0
        self._on_batch = on_batch

    def __next__(self) -> Batch:
        batch = self._on_batch(self.step + 1, make_batch(self.step + 1))
        self.step += 1
        return batch

    def get_state(self) -> dict:
        return {"step": self.step}

    def set_state(self, state: dict) -> None:
        self.step = state["step"]

    def accounting(self) -> dict:
        return {"captions": {"documents": self.step, "epochs": 0.5}, "text": {"documents": 0}}

    def close(self) -> None:
        pass


class FakeInput:
    """An input whose `on_batch(step, batch)` may change a batch or have side effects."""

    corpus_names = CORPUS_NAMES
    image_buffer = _OWN_SLOTS

    def __init__(self, on_batch: Any = lambda step, batch: batch, batch_size: int = 4):
        self._on_batch = on_batch
        self.batch_size = batch_size

    def describe(self) -> str:
        return "what the streams hold"

    def iterator(self) -> FakeIterator:
        return FakeIterator(self._on_batch)


class FakeEvaluator(Configurable):
    """Runs every `n` steps; its metric is a sum over the parameters, its samples are pictures.

    `on_run(number)` may fail or have side effects in run `number` of this evaluator.
    """

    @config_class
    class Config(Configurable.Config):
        n: int = 0

    def __init__(self, n: int = 0, on_run: Any = lambda number: None):
        super().__init__(self.default_config().set(n=n))
        self.n = n
        self.runs = 0
        self._on_run = on_run

    def due(self, step: int, max_steps: int) -> bool:
        return step >= max_steps or (self.n > 0 and step > 0 and step % self.n == 0)

    def run(self, model: BigramModel) -> Any:
        self.runs += 1
        self._on_run(self.runs)
        return SimpleNamespace(
            metrics={"quiz/0/accuracy": 0.75, "quiz/0/sum": float(jnp.sum(model.head[...]))},
            samples=[make_sample(True), make_sample(False)],
        )


def make_sample(correct: bool | None, benchmark: str = "quiz") -> Any:
    return SimpleNamespace(
        image=np.full((8, 8, 3), 200, np.uint8),
        prompt="Question: which digit is this? Short answer:",
        reference="seven",
        answer="seven" if correct else "four",
        correct=correct,
        benchmark=benchmark,
    )


@pytest.fixture
def fakes() -> Any:
    """The classes and functions of this file, for tests that cannot import it."""
    return SimpleNamespace(
        Model=BigramModel,
        Input=FakeInput,
        Evaluator=FakeEvaluator,
        batch=make_batch,
        objective=make_objective,
        sample=make_sample,
        corpus_names=CORPUS_NAMES,
    )


@pytest.fixture
def batch() -> Batch:
    return make_batch(0)


@pytest.fixture(scope="session", name="make_batch")
def _make_batch() -> Any:
    return make_batch


@pytest.fixture
def make_trainer(tmp_path: Any) -> Any:
    """Makes trainers of the small model that share an output folder."""

    def make(
        max_steps: int = 6,
        *,
        input: Any = None,
        evaluators: Any = None,
        output_dir: Any = tmp_path / "run",
        save_every: int = 2,
        learning_rate: float = 0.05,
        num_devices: int = 1,
        gradient_accumulation: int = 1,
        summary_every_n_steps: int = 10,
        norms_by_part: bool = False,
        anomalies: Any = None,
        **optimizer_fields: Any,
    ) -> Trainer:
        cfg = Trainer.default_config().set(
            max_steps=max_steps,
            summary_every_n_steps=summary_every_n_steps,
            norms_by_part=norms_by_part,
        )
        cfg.optimizer.set(learning_rate=learning_rate, warmup_steps=2, decay_steps=6)
        cfg.optimizer.set(**optimizer_fields)
        cfg.checkpointer.set(every_n_steps=save_every)
        cfg.anomalies.set(**(anomalies or {}))
        cfg.parallelism.gradient_accumulation = gradient_accumulation
        if num_devices == 8:
            cfg.parallelism.set(data=2, fsdp=2, model=2)
        input = input or FakeInput()
        return cfg.instantiate(
            objective=make_objective(
                loss=cfg.loss, rows=input.batch_size, image_buffer=input.image_buffer
            ),
            input=input,
            evaluators=evaluators or {},
            output_dir=output_dir,
            devices=jax.devices()[:num_devices],
        )

    return make


def records(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def losses(folder):
    return [(record["step"], record["loss"], record["grad_norm"]) for record in records(folder)]


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def unstopped(make_trainer, tmp_path):
    make_trainer(output_dir=tmp_path / "unstopped").run()
    return losses(tmp_path / "unstopped")


def killer(fakes, step):
    """An input that ends the process without notice when batch `step` is made."""

    def on_batch(number, batch):
        if number == step:
            raise KeyboardInterrupt
        return batch

    return fakes.Input(on_batch)
