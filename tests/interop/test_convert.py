"""Tensors one at a time: what a conversion holds in memory."""

import tracemalloc

import numpy as np

from mm1_jax.interop.convert import differences, import_params
from mm1_jax.interop.llama import decoder_entries
from mm1_jax.interop.mapping import Table
from mm1_jax.interop.tensor_files import Tensors, TensorSpec
from mm1_jax.models.decoder import Decoder
from mm1_jax.weights_folder import StoredParams, describe


class Drawn(Tensors):
    """The tensors of a decoder, made as they are asked for."""

    def __init__(self, entries):
        self.specs = {e.name: TensorSpec(e.shape, np.dtype(np.float32)) for e in entries}

    def read(self, name):
        return np.full(self.specs[name].shape, len(name), np.float32)


def test_memory_is_the_largest_tensor_and_twice_that_while_it_is_read_back(tmp_path):
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
    # Values that come back go through tensorstore, which allocates by itself.
    assert written < largest + 100 * 2**20
    assert read_back < 2 * largest + 100 * 2**20


def test_a_changed_value_is_named(tmp_path):
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
