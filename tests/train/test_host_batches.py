from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding

from mm1_jax.multihost import distributed
from mm1_jax.parallel.sharding import AxisRules, batch_shardings
from mm1_jax.train.host_batches import HostBatch, HostBatches, LoadedRows, host_rows


def shardings(**axes):
    devices = np.array(jax.devices()).reshape(tuple(axes.values()))
    return batch_shardings(Mesh(devices, tuple(axes)), AxisRules())


def row_sharding(**axes):
    """The row sharding of a `Program`."""
    mesh = shardings(**axes).tokens.mesh
    return NamedSharding(mesh, AxisRules().spec(("batch",), mesh))


class OfProcess:
    """A sharding on devices of which only some belong to this process."""

    def __init__(self, sharding, devices):
        self._sharding, self._devices = sharding, devices

    def addressable_devices_indices_map(self, shape):
        places = self._sharding.devices_indices_map(shape)
        return {device: places[device] for device in self._devices}


@pytest.mark.parametrize(
    ("axes", "devices", "runs"),
    [
        ({"data": 8}, [0, 1], [range(0, 4)]),
        ({"data": 8}, [0, 1, 4], [range(0, 4), range(8, 10)]),
        # Both devices hold the same rows, as the mesh also splits the model.
        ({"data": 4, "model": 2}, [2, 3], [range(4, 8)]),
        ({"data": 2, "model": 4}, [0, 1], [range(0, 8)]),
        ({"data": 1, "model": 8}, [3], [range(0, 16)]),
        ({"data": 2, "fsdp": 4}, [1, 2, 3], [range(2, 8)]),
    ],
)
def test_a_process_loads_the_rows_of_its_devices(axes, devices, runs):
    own = [jax.devices()[i] for i in devices]
    assert host_rows(OfProcess(row_sharding(**axes), own), 16) == runs


def rows_of(batch, rows, num_rows):
    def part(x):
        first, last = (end * len(x) // num_rows for end in (rows.start, rows.stop))
        return x[first:last]

    return LoadedRows(rows, jax.tree.map(part, batch))


@pytest.mark.parametrize(
    "runs", [[range(0, 8)], [range(0, 4), range(4, 8)], [range(0, 2), range(2, 8)]], ids=str
)
@pytest.mark.parametrize("axes", [{"data": 4, "model": 2}, {"data": 2, "fsdp": 2, "model": 2}])
def test_parts_are_placed_like_the_whole_batch(make_batch, axes, runs):
    batch, placed = make_batch(0, rows=8), shardings(**axes)
    whole = jax.tree.map(jax.device_put, batch, placed)
    parts = HostBatch(8, tuple(rows_of(batch, rows, 8) for rows in runs)).place(placed)
    for ours, theirs in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        assert ours.sharding == theirs.sharding and ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_the_saved_state_covers_the_rows_of_all_iterators_of_all_processes(monkeypatch):
    """A process whose rows are not adjacent has an iterator for each run of rows."""

    def iterator(rows, num_workers):
        return SimpleNamespace(get_state=lambda: [rows])

    input = SimpleNamespace(
        batch_size=16,
        num_workers=2,
        iterator=iterator,
        merge_states=lambda states: [rows for state in states for rows in state],
    )
    others = [[range(4, 8)], [range(10, 16)]]
    monkeypatch.setattr(distributed, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "gather", lambda own: [own, others])
    own = [range(0, 4), range(8, 10)]
    monkeypatch.setattr("mm1_jax.train.host_batches.host_rows", lambda *_: own)
    state = HostBatches(input, row_sharding(data=8)).get_state()
    assert sorted(index for rows in state for index in rows) == list(range(16))
