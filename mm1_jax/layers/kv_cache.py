"""Keys and values of the tokens that a row has read, of one layer, for decoding.

A row holds one document, and its token at position p takes slot p. So rows of unequal length need
no gaps, and what is visible follows from the position alone: slots up to one's own. Whatever lies
behind a row's last token, padding of its prompt or a longer row before it, is never seen and is
overwritten as the row grows.

Heads come before slots: a product over slots then reads each head's keys in one run. With slots
first, attention over a cache of 640 slots takes twelve times as long on a CPU.

Legend: B batch, T new tokens, S slots, N query heads, K kv heads, G query heads per kv head, H head
dim.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mm1_jax.layers.attention_kernels import MASKED
from mm1_jax.layers.attention_mask import attention_mask
from mm1_jax.parallel.sharding import constrain

CACHE_DTYPES = ("float32", "bfloat16", "int8")


class KVCache(NamedTuple):
    """Scales are there in a cache of int8, where a stored number times its scale is the value."""

    keys: Array
    values: Array
    key_scales: Float[Array, "B K S"] | None = None
    value_scales: Float[Array, "B K S"] | None = None

    @property
    def num_slots(self) -> int:
        return self.keys.shape[2]

    def write(
        self,
        keys: Float[Array, "B T K H"],
        values: Float[Array, "B T K H"],
        start: Int[Array, "B"] | None,
    ) -> "KVCache":
        """Stores the next T tokens of each row, from slot `start` on; None: from the first on.

        A row that would go past the last slot is moved back, over what it held: allocate enough.
        """
        new = {"keys": keys.swapaxes(1, 2), "values": values.swapaxes(1, 2)}
        if self.key_scales is not None:
            new["keys"], new["key_scales"] = quantise(new["keys"])
            new["values"], new["value_scales"] = quantise(new["values"])
        return self._replace(
            **{name: _update(getattr(self, name), x, start) for name, x in new.items()}
        )

    def attend(
        self, q_BTNH: Float[Array, "B T N H"], positions_BT: Int[Array, "B T"]
    ) -> Float[Array, "B T N H"]:
        """What the queries, scaled already, see: the slots up to their own; softmax in float32."""
        B, T, N, H = q_BTNH.shape
        K, dtype = self.keys.shape[1], q_BTNH.dtype
        q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
        logits_BKGTS = jnp.einsum(
            "BTKGH,BKSH->BKGTS",
            q_BTKGH,
            self.keys.astype(dtype),
            preferred_element_type=jnp.float32,
        )
        if self.key_scales is not None:
            logits_BKGTS *= self.key_scales[:, :, None, None]
        seen_BTS = self.seen(positions_BT)
        logits_BKGTS = jnp.where(seen_BTS[:, None, None], logits_BKGTS, MASKED)
        weights_BKGTS = jax.nn.softmax(logits_BKGTS, axis=-1)
        if self.value_scales is not None:
            weights_BKGTS *= self.value_scales[:, :, None, None]
        y_BTKGH = jnp.einsum(
            "BKGTS,BKSH->BTKGH", weights_BKGTS.astype(dtype), self.values.astype(dtype)
        )
        return y_BTKGH.reshape(B, T, N, H)

    def seen(self, positions_BT: Int[Array, "B T"]) -> Bool[Array, "B T S"]:
        slots_BS = jnp.broadcast_to(
            jnp.arange(self.num_slots)[None], (len(self.keys), self.num_slots)
        )
        query_ones, key_ones = jnp.ones_like(positions_BT), jnp.ones_like(slots_BS)
        return attention_mask(positions_BT, query_ones, slots_BS, key_ones, causal=True)


# Of all layers, in their order.
Caches = tuple[KVCache, ...]


def empty_cache(
    batch_size: int, num_slots: int, num_kv_heads: int, head_dim: int, dtype: DTypeLike
) -> KVCache:
    """Rows that hold nothing yet."""
    shape = (batch_size, num_kv_heads, num_slots, head_dim)
    zeros = split_cache(jnp.zeros(shape, dtype))
    if jnp.dtype(dtype) != jnp.int8:
        return KVCache(zeros, zeros)
    ones = split_cache(jnp.ones(shape[:3], jnp.float32))
    return KVCache(zeros, zeros, ones, ones)


def check_cache_dtype(dtype: str | None) -> None:
    """Raises ValueError on one that keys and values are not kept in; None is that of the model."""
    if dtype is not None and dtype not in CACHE_DTYPES:
        raise ValueError(f"cache_dtype={dtype!r}: must be one of {', '.join(CACHE_DTYPES)}")


def quantise(x: Float[Array, "*dims H"]) -> tuple[Int[Array, "*dims H"], Float[Array, "*dims"]]:
    """int8, and what to multiply it by: the last dim has one scale, its largest number being 127.

    `quantise([[1.0, -0.5]])` is `[[127, -64]], [1 / 127]`.
    """
    x = x.astype(jnp.float32)
    scales = jnp.maximum(jnp.max(jnp.abs(x), axis=-1), jnp.finfo(jnp.float32).tiny) / 127
    return jnp.round(x / scales[..., None]).astype(jnp.int8), scales


def split_cache(x: Array) -> Array:
    """Places a field of a cache: rows over the batch axes, heads over those of heads."""
    return constrain(x, "batch", "activation_kv_heads", *[None] * (x.ndim - 2))


def _update(slots: Array, new: Array, start: Int[Array, "B"] | None) -> Array:
    # Slots are the third dim of both, or the last one of scales.
    new = new.astype(slots.dtype)
    places = (0,) * (slots.ndim - 3)
    if start is None:
        return split_cache(jax.lax.dynamic_update_slice(slots, new, (0, 0, 0, *places)))
    written = jax.vmap(
        lambda slots, new, start: jax.lax.dynamic_update_slice(slots, new, (0, start, *places))
    )(slots, new, start)
    return split_cache(written)
