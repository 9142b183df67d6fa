import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mm1_jax.image_buffer import ImageBuffer
from mm1_jax.models.image_exchange import merge_images
from mm1_jax.models.merge import merge
from mm1_jax.parallel.parallelism import Parallelism
from mm1_jax.parallel.sharding import use_mesh

ROWS, LENGTH, SLOTS, M, D = 8, 16, 4, 3, 8
MESHES = {
    "data 2, fsdp 4": {"data": 2, "fsdp": 4},
    "data 2, fsdp 2, model 2": {"data": 2, "fsdp": 2, "model": 2},
    "fsdp 2, seq 2, model 2": {"data": 1, "fsdp": 2, "seq": 2, "model": 2},
}
# (rows that share a buffer, slots of the buffer); with (1, 4), a row has a slot for every image.
GROUPS = [(1, 4), (1, 3), (2, 6), (4, 12), (8, 16), (8, 24)]


def make_mesh(name):
    return Parallelism.default_config().set(**MESHES[name]).instantiate().mesh()


def make_rows(group_rows, group_slots, seed=0):
    """Makes rows of 0 to 4 images in the slots that the data side assigns; one image is bad."""
    rng = np.random.default_rng(seed)
    is_image = np.zeros((ROWS, LENGTH), bool)
    image_index = np.full((ROWS, SLOTS), -1, np.int32)
    order = ImageBuffer(group_rows, group_slots).slot_order()
    for start in range(0, ROWS, group_rows):
        taken = 0
        for b in range(start, start + group_rows):
            n = min(rng.integers(0, SLOTS + 1), group_slots - taken)
            image_index[b, :n] = start // group_rows * group_slots + order[taken : taken + n]
            is_image[b, 1 : 1 + n * M] = True
            taken += n
    b = np.flatnonzero(image_index[:, 0] >= 0)[-1]
    image_index[b, 0] = -1
    return (
        rng.normal(size=(ROWS, LENGTH, D)).astype(np.float32),
        rng.normal(size=(ROWS // group_rows * group_slots, M, D)).astype(np.float32),
        is_image,
        image_index,
    )


def compile_on(mesh, group_rows, arguments):
    """Compiles (merged, gradients of its squares) for arrays with the shardings of a batch."""

    def loss(token_embeddings, image_embeddings, is_image, image_index):
        with use_mesh(mesh):
            merged = merge_images(
                token_embeddings, image_embeddings, is_image, image_index, group_rows=group_rows
            )
        return jnp.sum(merged**2), merged

    axes = tuple(axis for axis in ("data", "fsdp") if axis in mesh.shape)
    rows = NamedSharding(mesh, P(axes))
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), in_shardings=rows)
    return step.lower(*arguments).compile()


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize(("group_rows", "group_slots"), GROUPS)
def test_rows_and_gradients_on_a_mesh_equal_those_of_one_device(name, group_rows, group_slots):
    mesh = make_mesh(name)
    for seed in range(2):
        arguments = make_rows(group_rows, group_slots, seed)
        is_image, image_index = arguments[2:]
        step = compile_on(mesh, group_rows, arguments)
        (_, merged), gradients = step(*jax.device_put(arguments, step.input_shardings[0]))
        np.testing.assert_array_equal(merged, merge(*map(jnp.asarray, arguments)))
        expected = jax.grad(lambda *x: jnp.sum(merge(*x) ** 2), argnums=(0, 1))(
            *map(jnp.asarray, arguments)
        )
        for gradient, right in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(gradient, right, rtol=1e-6)
    # The same program takes a batch without images.
    arguments = (*arguments[:2], np.zeros_like(is_image), np.full_like(image_index, -1))
    (_, merged), gradients = step(*jax.device_put(arguments, step.input_shardings[0]))
    np.testing.assert_array_equal(merged, arguments[0])
    assert not np.asarray(gradients[1]).any()


def collectives(compiled):
    """Returns (kind, floats in the result, devices in a group) of each collective of floats."""
    pattern = (
        r"= (\(?f32\[.*?) (all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute)\("
    )
    found = []
    for line in compiled.as_text().splitlines():
        # The scalar loss is summed over all devices, and not counted.
        match = re.search(pattern, line)
        if match and not match[1].startswith("f32[]"):
            sizes = [
                np.prod([int(n) for n in dims.split(",")] if dims else [1])
                for dims in re.findall(r"f32\[([\d,]*)\]", match[1])
            ]
            members = len(re.search(r"replica_groups=\{\{([\d,]+)\}", line)[1].split(","))
            found.append((match[2], int(sum(sizes)), members))
    return found


@pytest.mark.parametrize(("group_rows", "group_slots"), GROUPS)
def test_embeddings_are_exchanged_only_within_groups(group_rows, group_slots):
    """Uses eight devices with one row each."""
    arguments = make_rows(group_rows, group_slots)
    found = collectives(compile_on(make_mesh("data 2, fsdp 4"), group_rows, arguments))
    if group_slots == group_rows * SLOTS:
        assert found == []
        return
    # One exchange sends the embeddings, another returns their gradients.
    capacity = ImageBuffer(group_rows, group_slots).most_from_one_shard(SLOTS, group_rows)
    there = ("all-to-all", group_rows * capacity * M * D, group_rows)
    assert found == ([] if group_rows == 1 else [there, there])
    assert capacity * group_rows <= max(2 * SLOTS, group_rows)


@pytest.mark.parametrize("num_parts", [2, 4])
def test_a_micro_batch_of_whole_groups_finds_its_images(num_parts):
    arguments = make_rows(2, 6)
    whole = merge(*map(jnp.asarray, arguments))
    for part in range(num_parts):
        rows = [jnp.asarray(np.split(x, num_parts)[part]) for x in arguments]
        merged = merge_images(*rows, group_rows=2)
        np.testing.assert_array_equal(merged, np.split(np.asarray(whole), num_parts)[part])


def test_without_groups_an_image_may_be_in_any_slot():
    token_embeddings, image_embeddings, is_image, image_index = make_rows(8, 24)
    arguments = [jnp.asarray(x) for x in (token_embeddings, image_embeddings, is_image)]
    arguments.append(jnp.asarray(image_index))
    with use_mesh(make_mesh("data 2, fsdp 4")):
        merged = jax.jit(lambda *x: merge_images(*x, group_rows=None))(*arguments)
    np.testing.assert_array_equal(merged, merge(*arguments))


def test_fewer_prompts_than_devices_keep_their_own_images():
    token_embeddings, image_embeddings, is_image, image_index = make_rows(1, 4)
    arguments = [jnp.asarray(x[:n]) for x, n in (
        (token_embeddings, 2), (image_embeddings, 8), (is_image, 2), (image_index, 2)
    )]  # fmt: skip
    with use_mesh(make_mesh("data 2, fsdp 4")):
        merged = jax.jit(lambda *x: merge_images(*x, group_rows=64))(*arguments)
    np.testing.assert_array_equal(merged, merge(*arguments))
