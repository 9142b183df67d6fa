"""Image embeddings to the devices whose rows show them, and into these rows.

Pictures are encoded where they stand in the batch's buffer, which is spread evenly over the devices
that share the rows. Rows that have a buffer together (`input.image_group_rows`) may be on several
devices; these exchange what their rows show, and nobody else takes part.

Legend: B batch, T positions, D model dim, I image slots/row, J images in the buffer,
M image tokens/image.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from mm1_jax.image_buffer import ImageBuffer
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
    num_rows, max_images = image_index.shape
    buffer = ImageBuffer.of_batch(
        num_rows, len(image_embeddings), max_images, group_rows or num_rows
    )
    is_own = buffer == ImageBuffer(1, max_images)
    placement = current_placement()
    if placement is None or (group_rows is None and not is_own):
        return merge(token_embeddings, image_embeddings, is_image, in_part(image_index, buffer))
    mesh, rules = placement.mesh, placement.rules
    axes = tuple(jax.tree.leaves(tuple(rules.spec(("batch",), mesh))))
    num_shards = math.prod(mesh.shape[axis] for axis in axes)
    # Prompts may be too few for the devices; the compiler copies them.
    if num_shards == 1 or (is_own and num_rows % num_shards):
        return merge(token_embeddings, image_embeddings, is_image, in_part(image_index, buffer))
    num_sharing = buffer.shards_per_group(num_rows, num_shards)

    def merge_shard(token_embeddings, image_embeddings, is_image, image_index):
        if num_sharing == 1:
            image_index = in_part(image_index, buffer)
        else:
            image_embeddings, image_index = _exchange(
                image_embeddings, image_index, axes=axes, num_sharing=num_sharing, buffer=buffer
            )
        return merge(token_embeddings, image_embeddings, is_image, image_index)

    return jax.shard_map(
        merge_shard,
        mesh=mesh,
        in_specs=PartitionSpec(axes),
        out_specs=PartitionSpec(axes),
        axis_names=set(axes),
    )(token_embeddings, image_embeddings, is_image, image_index)


def in_part(image_index: Int[Array, "b I"], buffer: ImageBuffer) -> Int[Array, "b I"]:
    """`image_index` as it counts in the slots of these rows (whole groups), alone."""
    start = jnp.arange(len(image_index)) // buffer.group_rows * buffer.group_slots
    return jnp.where(image_index < 0, -1, image_index % buffer.group_slots + start[:, None])


def _exchange(
    image_embeddings: Float[Array, "j M D"],
    image_index: Int[Array, "b I"],
    *,
    axes: tuple[str, ...],
    num_sharing: int,
    buffer: ImageBuffer,
) -> tuple[Float[Array, "n M D"], Int[Array, "b I"]]:
    """What the rows of this device show, and which of it fills their slots.

    `num_sharing` consecutive devices of the mesh `axes` form a group. Each gets up to `capacity`
    images of each: an image has its place among those that its owner sends to this device.
    """
    own_slots = len(image_embeddings)
    capacity = buffer.most_from_one_shard(image_index.size, num_sharing)
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
