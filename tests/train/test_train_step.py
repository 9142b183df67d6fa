import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from bigram_trainer import host_batch

from mm1_jax.train.logs.run_log import step_record
from mm1_jax.train.metrics import Mean, divide


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_losses_on_eight_devices_equal_those_on_one(make_trainer, tmp_path):
    for num_devices in (1, 8):
        make_trainer(num_devices=num_devices, output_dir=tmp_path / str(num_devices)).run()
    assert losses(tmp_path / "8") == pytest.approx(losses(tmp_path / "1"), rel=1e-5)


@pytest.fixture
def compiled(make_trainer):
    """A compiled step on eight devices, its initial state, and the batch placement."""
    program = make_trainer(num_devices=8).program
    return SimpleNamespace(
        step=program.compile(),
        state=program.first_state(jax.random.key(0)),
        place=lambda batch: program.place(host_batch(batch)),
    )


def test_a_step_keeps_every_sharding_and_increments_the_step(compiled, batch):
    before = jax.tree.map(lambda x: (x.sharding, x.dtype, x.weak_type), compiled.state)
    state, metrics = compiled.step(compiled.state, compiled.place(batch))
    assert jax.tree.map(lambda x: (x.sharding, x.dtype, x.weak_type), state) == before
    assert state.step == 1
    # The state before is donated.
    assert all(x.is_deleted() for x in jax.tree.leaves(compiled.state.params))
    values = divide(metrics)
    assert values["tokens"] == (batch.segment_ids > 0).sum()
    assert values["images"] == (batch.image_index >= 0).sum()


def test_micro_batches_add_up_to_the_batch(make_trainer, tmp_path):
    for number in (1, 2, 4):
        make_trainer(output_dir=tmp_path / str(number), gradient_accumulation=number).run()
    for number in (2, 4):
        assert losses(tmp_path / str(number)) == pytest.approx(losses(tmp_path / "1"), rel=1e-5)


def test_batches_without_images_and_full_of_images_share_a_program(compiled, batch):
    empty = dataclasses.replace(
        batch, image_index=np.full_like(batch.image_index, -1), images=np.zeros_like(batch.images)
    )
    state, metrics = compiled.step(compiled.state, compiled.place(batch))
    assert divide(metrics)["images"] == 8
    _, metrics = compiled.step(state, compiled.place(empty))
    assert divide(metrics)["images"] == 0
    assert np.isfinite(divide(metrics)["loss"])


def test_metrics_of_a_sparse_model_have_expert_shares_per_layer():
    metrics = {
        "loss": Mean(np.float32(6), np.float32(4)),
        "corpus_loss": Mean(np.float32([6, 0]), np.float32([4, 0])),
        "expert_load": np.float32([[3, 1], [2, 2]]),
        "tokens": np.int32(4),
    }
    assert step_record(7, metrics, ["captions", "text"]) == {
        "step": 7,
        "loss": 1.5,
        "loss/captions": 1.5,
        "tokens": 4,
        "expert_load": [[0.75, 0.25], [0.5, 0.5]],
    }


def test_norms_of_parts_make_up_the_norm_of_the_whole(make_trainer, batch):
    program = make_trainer(norms_by_part=True).program
    before = program.first_state(jax.random.key(0))
    kept = jax.tree.map(np.asarray, before.params)
    after, metrics = program.compile()(before, program.place(host_batch(batch)))
    values = divide(metrics)
    assert set(kept) == {name.split("/")[1] for name in values if name.startswith("grad_norm/")}
    of_parts = [values[f"grad_norm/{part}"] for part in kept]
    assert np.linalg.norm(of_parts) == pytest.approx(values["grad_norm"], rel=1e-5)
    for part in kept:
        updates = jax.tree.map(
            lambda new, old: np.asarray(new) - old, after.params[part], kept[part]
        )
        norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(updates)))
        assert values[f"update_norm/{part}"] == pytest.approx(norm, rel=1e-4)
