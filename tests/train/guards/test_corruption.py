import jax
import numpy as np
import pytest
from bigram_trainer import host_batch

from mm1_jax.train.guards.corruption import Corrupted, Corruption


@pytest.fixture
def trainer(make_trainer):
    return make_trainer(num_devices=8)


@pytest.fixture
def state(trainer, prng_key):
    return trainer.program.first_state(prng_key)


def corruption(trainer, **fields):
    cfg = Corruption.default_config().set(**fields)
    return cfg.instantiate(mesh=trainer.program.mesh, state=trainer.program.abstract_state)


def with_a_flipped_bit(x, device_number):
    """Flips one bit in one device's copy of the array."""
    parts = []
    for number, shard in enumerate(x.addressable_shards):
        data = np.array(shard.data)
        if number == device_number:
            data.view(np.uint32).flat[3] ^= 1 << 7
        parts.append(jax.device_put(data, shard.device))
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, parts)


def test_equal_copies_pass(trainer, state):
    corruption(trainer, compare_replicas_every_n_steps=1).check_replicas(1, state)


@pytest.mark.parametrize("device", [0, 5])
def test_one_flipped_bit_of_one_copy_is_found_and_its_device_named(trainer, state, device):
    # The array is split over fsdp and model and replicated over data: two copies of each part.
    head = with_a_flipped_bit(state.params["head"], device)
    state = state._replace(params={**state.params, "head": head})
    with pytest.raises(Corrupted, match=r"\['head'\] differs between devices"):
        corruption(trainer, compare_replicas_every_n_steps=1).check_replicas(2, state)
    # No check is due at this step.
    corruption(trainer, compare_replicas_every_n_steps=3).check_replicas(2, state)


def test_the_different_one_of_many_copies_is_named(trainer, state):
    # A norm scale is split over fsdp alone: four copies of each half.
    scale = with_a_flipped_bit(state.params["scale"], 6)
    odd = state.params["scale"].addressable_shards[6].device
    state = state._replace(params={**state.params, "scale": scale})
    with pytest.raises(Corrupted) as error:
        corruption(trainer, compare_replicas_every_n_steps=1).check_replicas(1, state)
    assert f"{odd} of process 0 against 3 others" in str(error.value)


def test_repeating_a_step_gives_the_same_result(trainer, state, batch, prng_key):
    step = trainer.program.compile()
    placed = trainer.program.place(host_batch(batch))
    twice, _ = corruption(trainer, recompute_every_n_steps=1).step_twice(step, state, placed)
    once, _ = step(trainer.program.first_state(prng_key), placed)
    jax.tree.map(np.testing.assert_array_equal, twice, once)


def test_a_step_with_different_bits_on_repetition_is_detected(trainer, state, batch):
    step = trainer.program.compile()
    calls = []

    def faulty(state, batch):
        state, metrics = step(state, batch)
        calls.append(1)
        if len(calls) == 2:
            scale = with_a_flipped_bit(state.params["scale"], 2)
            state = state._replace(params={**state.params, "scale": scale})
        return state, metrics

    with pytest.raises(Corrupted, match="different bits the second time, on .* of process 0"):
        corruption(trainer, recompute_every_n_steps=1).step_twice(
            faulty, state, trainer.program.place(host_batch(batch))
        )
