import time

from mm1_jax.launch.__main__ import main
from mm1_jax.launch.named_configs import find_named_config
from mm1_jax.overrides import apply_overrides


def test_overrides_take_milliseconds():
    cfg = find_named_config("mm1_7b_moe")()
    resolved = cfg.klass.resolve(cfg)
    overrides = {f"input.streams[{i}].weight": "2" for i in range(3)} | {
        "trainer.seed": "1",
        "input.seed": "1",
        "model.dtype": "float32",
        "trainer.optimizer.clip": "2",
    }
    start = time.perf_counter()
    apply_overrides(cfg, overrides, types_from=resolved)
    # Without the type checks of tests, one takes a millisecond.
    assert time.perf_counter() - start < 0.05 * len(overrides)


def test_overrides_do_not_modify_the_given_configs():
    cfg = find_named_config("mm1_tiny")()
    resolved, before = cfg.klass.resolve(cfg), cfg.clone()
    overrides = {
        "trainer.wandb.project": "x",
        "evals": "digits_vqa",
        "model.connector": "MLP",
        "input.streams.0.weight": "3",
    }
    changed = apply_overrides(cfg, overrides, types_from=resolved)
    assert cfg == before and resolved == cfg.klass.resolve(before)
    assert changed.trainer.wandb.project == "x" and changed.input.streams[0].weight == 3
    assert list(changed.evals) == ["digits_vqa"]


def test_a_chosen_class_copies_the_fields_it_keeps():
    cfg = find_named_config("mm1_tiny")()
    both = {"trainer.optimizer": "Adafactor", "trainer.optimizer.warmup_steps": "3"}
    changed = apply_overrides(cfg, both, types_from=cfg)
    assert changed.trainer.optimizer.klass.__name__ == "Adafactor"
    assert changed.trainer.optimizer.warmup_steps == 3
    assert cfg.trainer.optimizer.warmup_steps == 40


def test_choosing_a_class_reports_kept_and_dropped_fields(capsys):
    argv = [
        *("--config=mm1_tiny", "--print_config", "--config.model.connector=AveragePooling"),
        "--config.model.connector.num_image_tokens=1",
    ]
    assert main(argv) == 0
    captured = capsys.readouterr()
    connector = "mm1_jax.models.connectors.average_pooling.AveragePooling"
    assert f"model.connector.klass: '{connector}'" in captured.out
    assert "input.num_image_tokens: 1\n" in captured.out
    assert captured.err.splitlines() == [
        "note: --config.model.connector=AveragePooling: keeps num_image_tokens=4; drops "
        "branch_init_scale=0.0, depth=1, hidden_dim=64, mlp_depth=1"
    ]
