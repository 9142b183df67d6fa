"""One step of AIM and AIMv2 gives the same on any mesh and with any number of micro-batches."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from bigram_trainer import host_batch
from patch_models import aim, aimv2, draw_batch

from experiments import encoders
from mm1_jax.experiment import Experiment
from mm1_jax.layers.linear import Linear
from mm1_jax.models.flops import patch_prediction_flops
from mm1_jax.parallel.parallelism import Parallelism
from mm1_jax.train.metrics import divide
from mm1_jax.train.optimizers.adamw import AdamW
from mm1_jax.train.patch_loss import AIMLoss, AIMv2Loss
from mm1_jax.train.patch_prediction import PatchAndTextPrediction, PatchPrediction
from mm1_jax.train.program import Program, ProgramSpec

PARTS = {
    "aim": (PatchPrediction, aim, AIMLoss.default_config()),
    "aimv2": (PatchAndTextPrediction, aimv2, AIMv2Loss.default_config().set(chunk_length=3)),
}


def batch_of(name):
    """A batch for a model; that of an AIM has no room for text."""
    batch = draw_batch()
    if name == "aimv2":
        return batch
    return dataclasses.replace(batch, tokens=batch.tokens[:, :0], lengths=0 * batch.lengths)


def make_program(name, axes, **parallelism):
    objective, model, loss = PARTS[name]
    spec = ProgramSpec(
        objective(
            model=model(),
            loss=loss,
            batch=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch_of(name)),
            num_corpora=2,
        ),
        optimizer=AdamW.default_config().set(
            learning_rate=1e-3, warmup_steps=0, decay_steps=10, clip=None
        ),
        parallelism=Parallelism.default_config().set(**{"data": 1, **axes}, **parallelism),
    )
    return Program(spec, jax.devices()[: np.prod(list(axes.values()), dtype=int)])


def step(name, axes, **parallelism):
    """Returns metrics and gradient of one step on the devices of the axes."""
    program = make_program(name, axes, **parallelism)
    rng = np.random.default_rng(1)
    host = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), program.abstract_state)
    host = host._replace(
        params=jax.tree.map(
            lambda x: (0.3 * rng.standard_normal(x.shape)).astype(x.dtype), host.params
        )
    )
    state = jax.device_put(host, jax.tree.map(lambda x: x.sharding, program.abstract_state))
    state, metrics = program.compile()(state, program.place(host_batch(batch_of(name))))
    # AdamW's first moments, unclipped, give the gradients.
    return divide(metrics), jax.tree.map(
        lambda x: np.asarray(x) / (1 - 0.9), state.opt_state[1][0].mu
    )


@pytest.fixture(scope="module")
def alone():
    """The step of one device on the whole batch."""
    return functools.cache(lambda name: step(name, {}))


@pytest.mark.parametrize(
    ("name", "axes", "micro_batches"),
    [
        ("aim", {}, 4),
        ("aim", {"data": 8}, 1),
        ("aimv2", {}, 2),
        ("aimv2", {"data": 2, "fsdp": 2, "model": 2}, 2),
    ],
    ids=str,
)
def test_a_split_step_equals_that_of_one_device(alone, name, axes, micro_batches):
    metrics, gradient = step(name, axes, gradient_accumulation=micro_batches)
    expected_metrics, expected = alone(name)
    for metric, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[metric], value, rtol=1e-5, atol=1e-6, err_msg=metric)
    paths = jax.tree_util.tree_leaves_with_path(expected)
    for (path, right), ours in zip(paths, jax.tree.leaves(gradient), strict=True):
        size = np.abs(right).max()
        np.testing.assert_allclose(ours, right, rtol=1e-3, atol=1e-4 * size, err_msg=str(path))


def test_counts_are_those_of_rows_with_a_record(alone):
    metrics, _ = alone("aimv2")
    assert (metrics["images"], metrics["tokens"]) == (7, 28)


@pytest.mark.parametrize("name", ["aim_600m", "aimv2_vit_l14"])
def test_a_config_is_resolved_by_its_objective(name):
    cfg = Experiment.resolve(getattr(encoders, name)())
    objective = Experiment.objective(cfg)
    assert cfg.input.image_size == objective.batch.images.shape[1] == 224
    assert objective.num_rows == cfg.input.batch_size
    assert objective.flops() == patch_prediction_flops(cfg.model, cfg.input.max_sequence_length)
    if name == "aimv2_vit_l14":
        assert (cfg.model.decoder.vocab_size, cfg.model.max_text_length) == (32_000, 77)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": aim()}, "model is a config of AIM.*AIMv2Loss trains an AIMv2"),
        ({"input.max_sequence_length": 0}, "AIMv2 predicts the text of each picture"),
        ({"model.max_text_length": 60}, "max_text_length is 60, but input.max_sequence_length"),
        ({"model.decoder": Linear.default_config()}, "model.decoder is a config of Linear"),
    ],
    ids=lambda x: x if isinstance(x, str) else next(iter(x)),
)
def test_parts_that_contradict_each_other_are_named(change, message):
    cfg = encoders.aimv2_vit_l14()
    for path, value in change.items():
        cfg.set_recursively(path.split("."), value=value)
    with pytest.raises(ValueError, match=message):
        Experiment.resolve(cfg)
