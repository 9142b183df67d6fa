import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("transformers")

TOOL = Path(__file__).parents[2] / "tools" / "benchmark_step.py"
_spec = importlib.util.spec_from_file_location("benchmark_step", TOOL)
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)

SMALL = {
    "model.decoder.num_layers": "2",
    "model.decoder.model_dim": "16",
    "model.decoder.num_heads": "2",
    "model.decoder.hidden_dim": "24",
    "input.batch_size": "2",
    "trainer.optimizer.learning_rate": "0.01",
    # Larger than the rounding errors of gradients.
    "trainer.optimizer.eps": "0.01",
}
PICTURES = {
    "model.decoder.num_kv_heads": "1",
    "model.vision_encoder.num_layers": "1",
    "model.vision_encoder.model_dim": "16",
    "model.connector.hidden_dim": "16",
    "input.max_images": "3",
}


@pytest.mark.parametrize(
    ("shapes", "overrides"),
    [
        ("9m", {**SMALL, "input.max_sequence_length": "16"}),
        ("mm1_tiny", {**SMALL, **PICTURES, "input.max_sequence_length": "24"}),
    ],
)
def test_both_sides_do_equal_work(shapes, overrides, tmp_path, assert_equal_work):
    cfg = tool.config(tool.SHAPES[shapes], overrides)
    tool.write_weights(cfg, tmp_path)
    sides = [tool.ours(cfg, tmp_path), tool.Torch(cfg, tmp_path)]
    assert_equal_work(sides)


def test_pictures_that_leave_no_room_for_text_are_refused():
    overrides = {"input.max_sequence_length": "64"}
    cfg = tool.config(tool.SHAPES["mm1_tiny"], overrides)
    with pytest.raises(ValueError, match="16 pictures take 64 of 64 positions"):
        tool.Rows.draw(cfg)


def test_every_shape_has_a_config():
    for shapes in tool.SHAPES.values():
        assert tool.config(shapes).input.batch_size == shapes.rows
