"""The paper's models on every kind and number of devices for which they have mesh rules."""

import pytest

from experiments import fine_tune, pretrain
from mm1_jax.parallel.parallelism import choose, matches, mesh_shape, name_of

CONFIGS = ("mm1_3b", "mm1_7b", "mm1_30b", "mm1_3b_moe", "mm1_7b_moe")
GPUS = [(kind, n, 1) for kind in ("h100", "h200") for n in (8, 16, 32, 64, 128, 256, 512)]
SLICES = [
    (kind, devices, slices)
    for kind, most in (("v4", 512), ("v5e", 256), ("v5p", 512), ("v6e", 256), ("tpu7x", 512))
    for devices in (64, 128, 256, 512)
    for slices in (1, 2, 4)
    if 64 <= devices // slices <= most
]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("kind", "devices", "slices"), SLICES + GPUS)
def test_batches_are_split_evenly_and_slices_are_replicas(name, kind, devices, slices):
    cfg = getattr(pretrain, name)()
    called = name_of(kind, devices, slices)
    rule = next(rule for rule in cfg.trainer.mesh_rules if matches(rule, called))
    assert kind in rule.devices, "only the rule for anything matches"
    parallelism = choose(cfg.trainer.mesh_rules, cfg.trainer.parallelism, called)
    shape = mesh_shape(parallelism, devices, slices)
    assert shape.get("data", 1) % slices == 0
    rows = cfg.input.batch_size // parallelism.gradient_accumulation
    shards = devices // shape.get("model", 1)
    assert rows % shards == 0 and rows % cfg.input.image_group_rows == 0
    if "moe" in name:
        assert cfg.model.decoder.moe.num_experts % shape["expert"] == 0


@pytest.mark.parametrize("name", [*(f"{name}_chat" for name in CONFIGS), "mm1p5_3b_continued"])
@pytest.mark.parametrize("kind", ["v5p", "v5e", "tpu7x"])
@pytest.mark.parametrize("devices", [64, 128])
def test_micro_batches_of_fine_tuning_hold_whole_groups_of_rows(name, kind, devices):
    cfg = getattr(fine_tune, name)()
    called = name_of(kind, devices, 1)
    rule = next(rule for rule in cfg.trainer.mesh_rules if matches(rule, called))
    assert kind in rule.devices, "only the rule for anything matches"
    parallelism = choose(cfg.trainer.mesh_rules, cfg.trainer.parallelism, called)
    rows = cfg.input.batch_size // parallelism.gradient_accumulation
    shards = devices // (parallelism.model or 1)
    assert rows % shards == 0 and rows % cfg.input.image_group_rows == 0
    buffer = cfg.input.klass.buffer_of(cfg.input)
    assert buffer.shards_per_group(rows, shards) > 1
