"""Exchange of image embeddings among devices, and their merge into the rows that show them.

The image buffer of a batch is sharded evenly over the devices that share its rows, and each device
encodes the images of its shard. Rows that share a buffer (`input.image_group_rows`) may be on
several devices. Only those devices exchange the image embeddings that their rows show.

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
    """Applies `merge` to a batch, or to a part of one that consists of whole groups.

    On a mesh, each device merges its own rows after an exchange with the other devices of its
    group.

    Args:
        group_rows: Number of rows that share a buffer. None means that the images of a row may be
            anywhere in the batch; the compiler then sends all images to all devices. If the buffer
            has a slot per image slot of the rows, each row has its own buffer and this is ignored.

    Raises:
        ValueError: The groups do not fit the mesh.
    """
    num_rows, max_images = image_index.shape
    buffer = ImageBuffer.of_batch(
        num_rows, len(image_embeddings), max_images, group_rows or num_rows
    )
    is_own = buffer == ImageBuffer(1, max_images)
    placement = current_placement()
    if placement is None or (group_rows is None and not is_own):
        return merge(token_embeddings, image_embeddings, is_image, local_index(image_index, buffer))
    mesh, rules = placement.mesh, placement.rules
    axes = tuple(jax.tree.leaves(tuple(rules.spec(("batch",), mesh))))
    num_shards = math.prod(mesh.shape[axis] for axis in axes)
    # There may be fewer prompts than devices; the compiler then replicates them.
    if num_shards == 1 or (is_own and num_rows % num_shards):
        return merge(token_embeddings, image_embeddings, is_image, local_index(image_index, buffer))
    num_sharing = buffer.shards_per_group(num_rows, num_shards)

    def merge_shard(token_embeddings, image_embeddings, is_image, image_index):
        if num_sharing == 1:
            image_index = local_index(image_index, buffer)
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


def local_index(image_index: Int[Array, "b I"], buffer: ImageBuffer) -> Int[Array, "b I"]:
    """Converts `image_index` to index the buffer slots of these rows, which are whole groups."""
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
    """Returns the image embeddings shown by this device's rows, and `image_index` into them.

    `num_sharing` consecutive devices along the mesh `axes` form a group. Each device receives up to
    `capacity` images from each device of its group. An image's place is its index among the images
    that its owner sends to this device.
    """
    own_slots = len(image_embeddings)
    capacity = buffer.most_from_one_shard(image_index.size, num_sharing)
    groups = np.arange(jax.lax.axis_size(axes)).reshape(-1, num_sharing).tolist()
    me = jax.lax.axis_index(axes) % num_sharing

    # Each device gathers the indices requested by its whole group; these are small.
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
