import functools
import importlib.util
from pathlib import Path

import pytest

from experiments.pretrain import mm1_tiny

TOOL = Path(__file__).parents[2] / "tools" / "benchmark_host_time.py"
_spec = importlib.util.spec_from_file_location("benchmark_host_time", TOOL)
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)


def small(steps, batch_size, shrink):
    cfg = mm1_tiny()
    cfg.model.decoder.set(num_layers=1)
    cfg.model.vision_encoder.set(num_layers=1)
    cfg.input.set(batch_size=batch_size, num_workers=0, max_sequence_length=96, max_images=4)
    shrink(cfg.input.streams)
    cfg.evals = {}
    cfg.trainer.max_steps = tool.WARM_UP + steps
    cfg.trainer.optimizer.warmup_steps = 0
    cfg.trainer.checkpointer.every_n_steps = tool.WARM_UP + 1
    return cfg


def test_all_of_the_time_is_accounted_for(monkeypatch, with_few_records):
    monkeypatch.setattr(tool, "config", functools.partial(small, shrink=with_few_records))
    seconds = tool.measure(4, 8)
    parts = ("waiting for the device", "waiting for data", "held up by saves", "host")
    assert sum(seconds[name] for name in parts) == pytest.approx(seconds["total"])
    assert all(seconds[name] > 0 for name in parts)
    assert 0 < seconds["CPU time of the main thread"] < seconds["total"]
