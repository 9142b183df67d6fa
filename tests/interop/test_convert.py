"""Conversions hold one tensor at a time in memory."""

import json
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from mm1_jax.checkpoints.weights_folder import StoredParams, describe
from mm1_jax.interop.convert import differences, import_params, same_bits
from mm1_jax.interop.families import Changes, make_parts
from mm1_jax.interop.llama_tensors import decoder_entries
from mm1_jax.interop.mapping import Table
from mm1_jax.interop.tensor_files import Tensors, TensorSpec, TensorWriter
from mm1_jax.models.decoder import Decoder

ROOT = Path(__file__).parent.parent.parent


class Drawn(Tensors):
    """Tensors of a decoder, made when they are read."""

    def __init__(self, entries):
        self.specs = {e.name: TensorSpec(e.shape, np.dtype(np.float32)) for e in entries}

    def read(self, name):
        return np.full(self.specs[name].shape, len(name), np.float32)


def test_conversion_memory_is_one_tensor_and_two_while_comparing(tmp_path):
    cfg = Decoder.default_config().set(
        vocab_size=200_000, model_dim=256, num_layers=12, num_heads=4, hidden_dim=1024
    )
    entries = decoder_entries(cfg)
    tensors = Drawn(entries)
    sizes = [spec.num_bytes for spec in tensors.specs.values()]
    largest = max(sizes)
    assert sum(sizes) > 2.2 * largest
    tracemalloc.start()
    try:
        table = Table({"decoder": cfg}, entries)
        import_params(table, tensors, tmp_path, where="drawn", watch=lambda name, size: None)
        written = tracemalloc.get_traced_memory()[1]
        describe(tmp_path, {})
        tracemalloc.reset_peak()
        assert differences(entries, tensors, StoredParams(tmp_path).read) == []
        read_back = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # tensorstore, which reads values back, has its own allocator.
    assert written < largest + 100 * 2**20
    assert read_back < 2 * largest + 100 * 2**20


def test_a_tensor_with_a_changed_value_is_named(tmp_path):
    cfg = Decoder.default_config().set(
        vocab_size=16, model_dim=8, num_layers=2, num_heads=2, hidden_dim=16
    )
    entries = decoder_entries(cfg)
    table, tensors = Table({"decoder": cfg}, entries), Drawn(entries)
    import_params(table, tensors, tmp_path, where="drawn", watch=lambda name, size: None)
    describe(tmp_path, {})
    stored = StoredParams(tmp_path)

    def read(path, index):
        value = stored.read(path, index).copy()
        if path.endswith("up/kernel") and index == (1,):
            value[0, 0] = np.nextafter(value[0, 0], np.float32(1e9))
        return value

    assert differences(entries, tensors, read) == ["model.layers.1.mlp.up_proj.weight"]


LARGE = {
    "model_type": "llama",
    "vocab_size": 131_072,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 1,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


@pytest.mark.slow
def test_memory_of_an_import_is_bounded_with_tables_of_1_gib(tmp_path):
    """Checks the memory that the tool reports for its process, tensorstore included."""
    source = tmp_path / "hf"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(LARGE))
    entries = decoder_entries(make_parts(LARGE, Changes())["decoder"])
    specs = {e.name: TensorSpec(e.shape, np.dtype(ml_dtypes.bfloat16)) for e in entries}
    assert max(spec.num_bytes for spec in specs.values()) == 2**30
    TensorWriter(source, specs, 10**9).write(
        lambda name: np.full(specs[name].shape, len(name), specs[name].dtype)
    )
    command = [sys.executable, "-m", "mm1_jax", "convert_checkpoint", "import"]
    command += [f"--source={source}", f"--output={tmp_path / 'ours'}", "--skip_comparison"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment["XLA_FLAGS"] = os.environ["MM1_TEST_XLA_FLAGS"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    found = re.search(r"written with ([\d.]+), read back with ([\d.]+)", done.stdout)
    written, read_back = map(float, found.groups())
    assert written < 1 + 0.8 and read_back < 2 + 0.8


def test_tensors_of_different_lengths_are_not_bit_equal(monkeypatch):
    # Compares in blocks of two rows.
    monkeypatch.setattr("mm1_jax.interop.convert._ROWS", 2)
    rows = np.ones((3, 2), np.float32)
    assert same_bits(rows, rows.astype(ml_dtypes.bfloat16))
    assert not same_bits(rows, rows[:2])
    assert not same_bits(rows[:2], rows)
