import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm1_jax.models.merge import merge

M, D = 3, 4


def merge_one_by_one(token_embeddings, image_embeddings, is_image, image_index):
    """The definition of the merge, position by position."""
    merged = np.array(token_embeddings)
    for row, flags in enumerate(np.asarray(is_image)):
        for rank, position in enumerate(np.flatnonzero(flags)):
            slot, token = divmod(rank, image_embeddings.shape[1])
            known = slot < image_index.shape[1] and image_index[row, slot] >= 0
            merged[row, position] = image_embeddings[image_index[row, slot], token] if known else 0
    return merged


@pytest.fixture
def rows(prng_key):
    """Rows with text between images, full of images, without images, and with a missing image."""
    keys = jax.random.split(prng_key, 2)
    is_image = np.zeros((4, 9), bool)
    is_image[0, [0, 1, 2, 5, 6, 7]] = True
    is_image[1] = True
    is_image[3, 1:7] = True
    image_index = np.array([[4, 0, -1], [1, 2, 3], [-1, -1, -1], [-1, 4, -1]], np.int32)
    return (
        jax.random.normal(keys[0], (4, 9, D)),
        jax.random.normal(keys[1], (5, M, D)),
        jnp.asarray(is_image),
        jnp.asarray(image_index),
    )


def test_merge_equals_its_definition(rows):
    np.testing.assert_array_equal(merge(*rows), merge_one_by_one(*rows))


def test_merge_without_images_is_the_identity(rows):
    token_embeddings, image_embeddings, is_image, image_index = rows
    merged = merge(token_embeddings, image_embeddings, jnp.zeros_like(is_image), image_index)
    np.testing.assert_array_equal(merged, token_embeddings)


def test_a_slot_without_an_image_gives_zeros(rows):
    merged = merge(*rows)
    assert not merged[3, 1:4].any()
    assert merged[3, 4:7].all()


def test_an_image_position_beyond_the_last_slot_gives_zeros(rows):
    token_embeddings, image_embeddings, is_image, image_index = rows
    merged = merge(token_embeddings, image_embeddings, is_image, image_index[:, :1])
    assert not merged[1, M:].any()


def test_permuting_the_buffer_with_its_index_changes_nothing(rows):
    token_embeddings, image_embeddings, is_image, image_index = rows
    order = np.array([3, 0, 4, 1, 2])
    moved_index = jnp.where(image_index >= 0, jnp.argsort(order)[image_index], -1)
    np.testing.assert_array_equal(
        merge(token_embeddings, image_embeddings[order], is_image, moved_index), merge(*rows)
    )


def test_image_positions_pass_no_gradient_to_token_embeddings(rows):
    token_embeddings, image_embeddings, is_image, image_index = rows
    gradient = jax.grad(lambda x: merge(x, image_embeddings, is_image, image_index).sum())(
        token_embeddings
    )
    np.testing.assert_array_equal(
        gradient, jnp.broadcast_to(~is_image[:, :, None], gradient.shape).astype(gradient.dtype)
    )


def test_an_image_gets_the_gradient_of_its_positions(rows, prng_key):
    token_embeddings, image_embeddings, is_image, image_index = rows
    # One image is in two rows; the last row has a position beyond its last slot.
    image_index = image_index.at[0, 0].set(1)
    is_image = is_image.at[0].set(True)
    weights = jax.random.normal(prng_key, token_embeddings.shape)

    def total(x):
        return jnp.sum(weights * merge(token_embeddings, x, is_image, image_index[:, :2]))

    # Merging is linear in the images, so a finite difference of an entry equals its gradient.
    nothing = np.zeros_like(image_embeddings)
    base = merge_one_by_one(token_embeddings, nothing, is_image, image_index[:, :2])
    expected = np.zeros_like(nothing)
    for place in np.ndindex(nothing.shape):
        one = nothing.copy()
        one[place] = 1
        merged = merge_one_by_one(token_embeddings, one, is_image, image_index[:, :2])
        expected[place] = np.sum((merged - base) * weights)
    np.testing.assert_allclose(jax.grad(total)(image_embeddings), expected, rtol=1e-5, atol=1e-6)
