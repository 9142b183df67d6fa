import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("transformers")

TOOL = Path(__file__).parents[2] / "tools" / "benchmark_encoder.py"
_spec = importlib.util.spec_from_file_location("benchmark_encoder", TOOL)
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)

SIZES = {"model_dim": 16, "num_layers": 2, "num_heads": 2, "hidden_dim": 24}
SMALL = {
    "model.vision_encoder.image_size": "32",
    "model.features_dim": "12",
    "input.max_sequence_length": "7",
    "input.tokenizer.num_pieces": "40",
    "trainer.optimizer.learning_rate": "0.01",
    # Larger than the rounding errors of gradients.
    "trainer.optimizer.eps": "0.01",
    # The peers also decay the position of the class token, a row of a matrix there.
    "trainer.optimizer.weight_decay": "0",
}
for tower in ("vision_encoder", "text_encoder"):
    SMALL |= {f"model.{tower}.{name}": str(size) for name, size in SIZES.items()}


@pytest.fixture(params=tool.PEERS)
def sides(request, tmp_path):
    # An import would fail without torchvision, which the benchmark does not need.
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    cfg = tool.config(6, SMALL)
    tool.write_weights(cfg, request.param, tmp_path)
    return tool.ours(cfg, tmp_path), tool.Torch(cfg, tmp_path, request.param)


def test_both_sides_do_equal_work(sides, assert_equal_work):
    assert_equal_work(sides)
