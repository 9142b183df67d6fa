"""The rule that decides which positions a position sees."""

import jax.numpy as jnp
import numpy as np

from mm1_jax.layers.attention_mask import Visibility, attention_mask

SEGMENT_IDS = jnp.array([[1, 1, 2, 2, 0]])
POSITIONS = jnp.array([[0, 1, 0, 1, 0]])


def test_causal_mask_of_two_documents_and_padding():
    mask = attention_mask(POSITIONS, SEGMENT_IDS, POSITIONS, SEGMENT_IDS, causal=True)
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(mask[0], np.array(expected, bool))


def test_bidirectional_mask_stays_inside_documents():
    mask = attention_mask(POSITIONS, SEGMENT_IDS, POSITIONS, SEGMENT_IDS, causal=False)
    expected = np.zeros((5, 5), bool)
    expected[:2, :2] = expected[2:4, 2:4] = True
    np.testing.assert_array_equal(mask[0], expected)


def test_each_row_has_its_own_prefix_which_excludes_padding():
    positions = jnp.tile(jnp.arange(4)[None], (2, 1))
    segment_ids = jnp.array([[1, 1, 1, 1], [1, 1, 1, 0]])
    visibility = Visibility(
        positions, segment_ids, positions, segment_ids, True, prefix_lengths=jnp.array([2, 4])
    )
    expected = np.array(
        [
            [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]],
            [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]],
        ],
        bool,
    )
    np.testing.assert_array_equal(visibility.mask(), expected)


def test_keys_are_masked_by_position_at_any_index():
    # The layout of a cache: a prompt of 2 padded to 3, the tokens at 2 and 3, then an empty slot.
    key_positions = jnp.array([[0, 1, 0, 2, 3, 0]])
    key_segment_ids = jnp.array([[1, 1, 0, 1, 1, 0]])
    query = Visibility(
        jnp.array([[2]]), jnp.array([[1]]), key_positions, key_segment_ids, causal=True
    )
    np.testing.assert_array_equal(query.mask()[0, 0], np.array([1, 1, 0, 1, 0, 0], bool))
