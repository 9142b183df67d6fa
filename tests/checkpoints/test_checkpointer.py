import shutil

import jax
import numpy as np
import pytest

from mm1_jax.checkpoints.checkpointer import Checkpointer


@pytest.fixture
def trainer(make_trainer):
    return make_trainer(num_devices=8)


@pytest.fixture
def shardings(trainer):
    return jax.tree.map(lambda x: x.sharding, trainer.program.abstract_state)


@pytest.fixture
def state(trainer, shardings, prng_key):
    """A state without zeros, so that a leaf that is not restored is noticed."""

    def draw(x):
        if x.ndim == 0:
            return np.asarray(7, x.dtype)
        return np.asarray(jax.random.normal(prng_key, x.shape, x.dtype))

    return jax.device_put(jax.tree.map(draw, trainer.program.abstract_state), shardings)


@pytest.fixture
def open_checkpointer(tmp_path):
    opened = []

    def open_it(**options):
        read_only = options.pop("read_only", False)
        cfg = Checkpointer.default_config().set(every_n_steps=2, **options)
        opened.append(cfg.instantiate(directory=tmp_path / "checkpoints", read_only=read_only))
        return opened[-1]

    yield open_it
    for checkpointer in opened:
        checkpointer.close()


def test_a_sharded_state_is_restored_bit_equal_with_its_shardings(
    trainer, state, open_checkpointer
):
    checkpointer = open_checkpointer()
    checkpointer.save(4, state, {"next_index": [1, 2]})
    checkpointer.wait()
    restored, input_state = open_checkpointer().restore(trainer.program.abstract_state)
    assert input_state == {"next_index": [1, 2]}
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for (path, before), after in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(restored), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert after.sharding == before.sharding, name
        assert (after.dtype, after.weak_type) == (before.dtype, before.weak_type), name
        np.testing.assert_array_equal(after, before, err_msg=name)


def test_moments_have_the_shardings_of_their_parameters(state):
    adam = state.opt_state[1][0]
    params, mu, nu = (
        jax.tree.map(lambda x: x.sharding, tree) for tree in (state.params, adam.mu, adam.nu)
    )
    assert mu == params == nu
    assert params["embedding"].spec == jax.P("model", "fsdp")
    assert adam.count.sharding.is_fully_replicated


def test_a_checkpoint_holds_the_state_at_the_time_of_the_save(
    trainer, state, open_checkpointer, shardings
):
    # The buffers of the saved state are overwritten while it is being written.
    def add_one(state):
        return jax.tree.map(lambda x: x + 1, state)

    advance = jax.jit(add_one, donate_argnums=0, out_shardings=shardings)
    expected = jax.tree.map(np.array, state)
    checkpointer = open_checkpointer()
    checkpointer.save(2, state, {})
    for _ in range(20):
        state = advance(state)
    checkpointer.wait()
    restored, _ = checkpointer.restore(trainer.program.abstract_state)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_a_half_written_checkpoint_is_ignored_and_removed(
    trainer, state, open_checkpointer, tmp_path
):
    checkpointer = open_checkpointer()
    checkpointer.save(2, state, {"step": 2})
    checkpointer.wait()
    folder = tmp_path / "checkpoints"
    half = folder / "4.orbax-checkpoint-tmp"
    shutil.copytree(folder / "2", half)
    (half / "input" / "metadata").unlink()
    checkpointer = open_checkpointer()
    assert checkpointer.latest_step() == 2
    assert checkpointer.restore(trainer.program.abstract_state)[1] == {"step": 2}
    assert not half.exists()


def test_only_the_last_few_checkpoints_are_kept(state, open_checkpointer, tmp_path):
    checkpointer = open_checkpointer(keep_last=2)
    for step in (2, 4, 6):
        assert checkpointer.due(step)
        checkpointer.save(step, state, {})
        assert not checkpointer.due(step)
    checkpointer.wait()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["4", "6"]
    assert not checkpointer.due(7)
    assert not checkpointer.due(0)


def test_parameters_can_be_restored_without_the_optimizer_state(trainer, state, open_checkpointer):
    checkpointer = open_checkpointer()
    checkpointer.save(2, state, {})
    zeros = jax.tree.map(jax.numpy.zeros_like, state)
    checkpointer.save(4, zeros, {})
    checkpointer.wait()
    reader = open_checkpointer(read_only=True)
    shapes = trainer.program.abstract_state.params
    newest, older = (reader.restore_params(shapes, step=step) for step in (None, 2))
    jax.tree.map(np.testing.assert_array_equal, newest, zeros.params)
    jax.tree.map(np.testing.assert_array_equal, older, state.params)
    with pytest.raises(ValueError, match=r"step=3: .*steps \[2, 4\]"):
        reader.restore_params(shapes, step=3)


def test_a_folder_without_a_checkpoint_is_named(trainer, open_checkpointer):
    with pytest.raises(ValueError, match="no complete checkpoint in .*checkpoints"):
        open_checkpointer().restore_params(trainer.program.abstract_state.params)


@pytest.mark.parametrize("field", ["every_n_steps", "keep_last"])
def test_bad_fields_are_named(tmp_path, field):
    with pytest.raises(ValueError, match=f"{field}=0: expected at least 1"):
        Checkpointer.default_config().set(**{field: 0}).instantiate(directory=tmp_path)
