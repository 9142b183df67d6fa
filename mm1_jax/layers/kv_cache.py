"""KV cache of one layer, for decoding.

Each row holds one document, and its token at position p is stored in slot p. A query therefore sees
the slots up to its own position, and rows of unequal length need no gaps. Slots after the last
token of a row may hold padding of its prompt or remains of an earlier, longer row. They are never
seen, and are overwritten as the row grows.

Arrays have heads before slots, so that a product over slots reads the keys of each head
contiguously. With slots first, attention over a cache of 640 slots is twelve times slower on CPU.

Legend: B batch, T new tokens, S slots, N query heads, K kv heads, G query heads per kv head, H head
dim.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mm1_jax.layers.attention_mask import MASKED, attention_mask
from mm1_jax.parallel.sharding import constrain

CACHE_DTYPES = ("float32", "bfloat16", "int8")


class KVCache(NamedTuple):
    """Cached keys and values, with scales if int8 (value = stored integer times scale)."""

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
        """Returns the cache with the next T tokens of each row written from slot `start`.

        None writes from the first slot. A write that would pass the last slot is shifted back over
        earlier tokens, so the caller must allocate enough slots.
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
        """Attends from scaled queries to the slots up to their positions; softmax in float32."""
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


# One cache per layer, in layer order.
Caches = tuple[KVCache, ...]


def empty_cache(
    batch_size: int, num_slots: int, num_kv_heads: int, head_dim: int, dtype: DTypeLike
) -> KVCache:
    """Allocates an empty cache."""
    shape = (batch_size, num_kv_heads, num_slots, head_dim)
    zeros = split_cache(jnp.zeros(shape, dtype))
    if jnp.dtype(dtype) != jnp.int8:
        return KVCache(zeros, zeros)
    ones = split_cache(jnp.ones(shape[:3], jnp.float32))
    return KVCache(zeros, zeros, ones, ones)


def check_cache_dtype(dtype: str | None) -> None:
    """Raises ValueError for an unsupported cache dtype; None stands for the dtype of the model."""
    if dtype is not None and dtype not in CACHE_DTYPES:
        raise ValueError(f"cache_dtype={dtype!r}: must be one of {', '.join(CACHE_DTYPES)}")


def quantise(x: Float[Array, "*dims H"]) -> tuple[Int[Array, "*dims H"], Float[Array, "*dims"]]:
    """Quantizes to int8 with one scale per vector of the last dim, mapping its maximum to 127.

    `quantise([[1.0, -0.5]])` returns `[[127, -64]], [1 / 127]`.
    """
    x = x.astype(jnp.float32)
    scales = jnp.maximum(jnp.max(jnp.abs(x), axis=-1), jnp.finfo(jnp.float32).tiny) / 127
    return jnp.round(x / scales[..., None]).astype(jnp.int8), scales


def split_cache(x: Array) -> Array:
    """Shards a cache field: rows over the batch axes, heads over the kv head axes."""
    return constrain(x, "batch", "activation_kv_heads", *[None] * (x.ndim - 2))


def _update(slots: Array, new: Array, start: Int[Array, "B"] | None) -> Array:
    # The slot dim is the third one, both in keys and values and in scales.
    new = new.astype(slots.dtype)
    places = (0,) * (slots.ndim - 3)
    if start is None:
        return split_cache(jax.lax.dynamic_update_slice(slots, new, (0, 0, 0, *places)))
    written = jax.vmap(
        lambda slots, new, start: jax.lax.dynamic_update_slice(slots, new, (0, start, *places))
    )(slots, new, start)
    return split_cache(written)
