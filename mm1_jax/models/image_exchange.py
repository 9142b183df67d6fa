"""Image embeddings to the devices whose rows show them, and into these rows.

Pictures are encoded where they stand in the batch's buffer, which is spread evenly over the devices
that share the rows. Rows that have a buffer together (`input.image_group_rows`) may be on several
devices; these exchange what their rows show, and nobody else takes part.

Legend: B batch, T positions, D model dim, I image slots/row, J images in the buffer,
M image tokens/image.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from mm1_jax.batch import dealt_slots
from mm1_jax.models.merge import merge
from mm1_jax.parallel.sharding import current_placement


def merge_images(
    token_embeddings: Float[Array, "B T D"],
    image_embeddings: Float[Array, "J M D"],
    is_image: Bool[Array, "B T"],
    image_index: Int[Array, "B I"],
    *,
    group_rows: int | None,
) -> Float[Array, "B T D"]:
    """`merge`, for a batch or a part of one that holds whole groups, on a mesh or without one.

    On a mesh, every device merges its own rows, after an exchange with the others of its group.

    Args:
        group_rows: Rows that share a buffer; None if the pictures of a row may be anywhere, which
            leaves it to the compiler to move them (it sends all of them to everybody). A buffer
            with a slot for every place is known by its size: there, each row has its own.

    Raises:
        ValueError: The groups cannot be laid out on the mesh.
    """
    num_rows, num_slots = len(image_index), len(image_embeddings)
    is_own = num_slots == image_index.size
    group_rows = 1 if is_own else group_rows
    placement = current_placement()
    if placement is None or group_rows is None:
        image_index = in_part(image_index, num_slots, group_rows or num_rows)
        return merge(token_embeddings, image_embeddings, is_image, image_index)
    mesh, rules = placement.mesh, placement.rules
    axes = tuple(jax.tree.leaves(tuple(rules.spec(("batch",), mesh))))
    num_shards = math.prod(mesh.shape[axis] for axis in axes)
    # Prompts may be too few for the devices; the compiler copies them.
    if num_shards == 1 or (is_own and num_rows % num_shards):
        image_index = in_part(image_index, num_slots, group_rows)
        return merge(token_embeddings, image_embeddings, is_image, image_index)
    num_sharing = shards_per_group(num_rows, num_slots, group_rows, num_shards)

    def merge_shard(token_embeddings, image_embeddings, is_image, image_index):
        if num_sharing == 1:
            image_index = in_part(image_index, len(image_embeddings), group_rows)
        else:
            image_embeddings, image_index = _exchange(
                image_embeddings,
                image_index,
                axes=axes,
                num_sharing=num_sharing,
                group_rows=group_rows,
            )
        return merge(token_embeddings, image_embeddings, is_image, image_index)

    return jax.shard_map(
        merge_shard,
        mesh=mesh,
        in_specs=PartitionSpec(axes),
        out_specs=PartitionSpec(axes),
        axis_names=set(axes),
    )(token_embeddings, image_embeddings, is_image, image_index)


def shards_per_group(num_rows: int, num_slots: int, group_rows: int, num_shards: int) -> int:
    """How many devices share the rows of a group; 1 if a device has whole groups.

    Raises:
        ValueError: Devices would have parts of several groups, or parts of a slot.
    """
    shard_rows = num_rows // num_shards
    num_sharing = max(1, group_rows // max(1, shard_rows))
    if (
        num_rows % num_shards
        or num_rows % group_rows
        or max(group_rows, shard_rows) % min(group_rows, shard_rows)
    ):
        raise ValueError(
            f"input.image_group_rows={group_rows}: a step (or micro-batch) of {num_rows} rows on "
            f"{num_shards} devices has {num_rows / num_shards:g} rows a device; a group must be "
            "the rows of a whole number of devices, or a device have a whole number of groups: "
            "take a power of 2"
        )
    group_slots = num_slots // (num_rows // group_rows)
    if group_slots % num_sharing:
        better = -(-group_slots // num_sharing) * num_sharing
        raise ValueError(
            f"input.images_per_row: {group_rows} rows share {group_slots} slots, which "
            f"{num_sharing} devices cannot share evenly; take {better / group_rows:g}, for {better}"
        )
    return num_sharing


def in_part(image_index: Int[Array, "b I"], num_slots: int, group_rows: int) -> Int[Array, "b I"]:
    """`image_index` as it counts in the `num_slots` slots of these rows (whole groups), alone."""
    num_rows = len(image_index)
    group_slots = num_slots * group_rows // num_rows
    start = jnp.arange(num_rows) // group_rows * group_slots
    return jnp.where(image_index < 0, -1, image_index % group_slots + start[:, None])


def _exchange(
    image_embeddings: Float[Array, "j M D"],
    image_index: Int[Array, "b I"],
    *,
    axes: tuple[str, ...],
    num_sharing: int,
    group_rows: int,
) -> tuple[Float[Array, "n M D"], Int[Array, "b I"]]:
    """What the rows of this device show, and which of it fills their slots.

    `num_sharing` consecutive devices of the mesh `axes` form a group. Each gets up to `capacity`
    images of each: an image has its place among those that its owner sends to this device.
    """
    own_slots = len(image_embeddings)
    capacity = most_from_one(own_slots * num_sharing, group_rows, image_index.size, num_sharing)
    groups = np.arange(jax.lax.axis_size(axes)).reshape(-1, num_sharing).tolist()
    me = jax.lax.axis_index(axes) % num_sharing

    # Everybody works out what all the others ask for: indices are small beside embeddings.
    asked = jax.lax.all_gather(image_index, axes, axis_index_groups=groups)
    asked = asked.reshape(num_sharing, -1)
    owner = jnp.where(asked < 0, -1, asked // own_slots % num_sharing)
    is_of = owner[:, :, None] == jnp.arange(num_sharing)[None, None]
    place = jnp.sum(jnp.where(is_of, jnp.cumsum(is_of, axis=1) - 1, 0), axis=2)

    sent = jnp.zeros((num_sharing, capacity), jnp.int32)
    sent = sent.at[jnp.arange(num_sharing)[:, None], jnp.where(owner == me, place, capacity)].set(
        asked % own_slots, mode="drop"
    )
    received = jax.lax.all_to_all(image_embeddings[sent], axes, 0, 0, axis_index_groups=groups)
    received = received.reshape(num_sharing * capacity, *image_embeddings.shape[1:])
    received_index = jnp.where(owner < 0, -1, owner * capacity + place)[me]
    return received, received_index.reshape(image_index.shape)


@functools.cache
def most_from_one(group_slots: int, group_rows: int, num_shown: int, num_sharing: int) -> int:
    """The most pictures that one device may want of one other in its group.

    Its rows show a run of the group's pictures of at most `num_shown`, in the order of dealing.
    """
    order = dealt_slots(group_slots, group_rows)
    is_of = order[:, None] // (group_slots // num_sharing) == np.arange(num_sharing)
    before = np.concatenate([np.zeros((1, num_sharing), int), np.cumsum(is_of, axis=0)])
    length = min(num_shown, group_slots)
    return int(np.max(before[length:] - before[: len(before) - length]))
