"""Attention on a CPU, whose backward pass is written out.

XLA writes the logits of all pairs of a query and a key to memory once for each loop that it cannot
fuse: as JAX differentiates a softmax, about ten times in a training step. Here there are five:

- The division of the softmax and its gradient are applied to outputs of H values per query, instead
  of S weights.
- Gradients of keys and values are products whose right factor is the T x S matrix. As the left one,
  it would be written once more, transposed (see `linear.product`).

Legend: B batch, T query positions, S key positions, N query heads, K kv heads, Q rows of queries of
a kv head (its heads x T), H head dim.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from mm1_jax.layers.attention_mask import MASKED


def cpu_attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    mask_BTS: Bool[Array, "B T S"] | None,
    *,
    residual_name: str,
) -> Float[Array, "B T N H"]:
    """Computes attention, with the softmax in float32; gradients are of first order.

    Args:
        q_BTNH: Queries, already scaled by 1/sqrt(H).
        residual_name: Names the output, which the backward pass reads, for rematerialization.
    """
    return _attend(q_BTNH, k_BSKH, v_BSKH, mask_BTS, residual_name)


def _forward(q_BTNH, k_BSKH, v_BSKH, mask_BTS, residual_name):
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    q_BKQH = _rows(q_BTNH, K)
    k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
    logits = _einsum("BKQH,BKSH->BKQS", q_BKQH, k_BKSH)
    if mask_BTS is not None:
        logits = logits.reshape(B, K, N // K, T, S)
        logits = jnp.where(mask_BTS[:, None, None], logits, MASKED).reshape(B, K, -1, S)
    # Weights before the division by their sum.
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    sums = weights.sum(axis=-1, keepdims=True)
    weights = weights.astype(v_BSKH.dtype)
    y_BKQH = _einsum("BKQS,BKSH->BKQH", weights, v_BKSH) / sums
    y_BTNH = checkpoint_name(_heads(y_BKQH, T).astype(q_BTNH.dtype), residual_name)
    return y_BTNH, (q_BKQH, k_BKSH, v_BKSH, weights, sums, y_BTNH)


def _backward(residual_name, residuals, g_BTNH):
    del residual_name
    q_BKQH, k_BKSH, v_BKSH, weights, sums, y_BTNH = residuals
    T, K, dtype = g_BTNH.shape[1], k_BKSH.shape[1], q_BKQH.dtype
    products = g_BTNH.astype(jnp.float32) * y_BTNH
    mean = _rows(products.sum(axis=-1, keepdims=True), K) / sums
    g_BKQH = (_rows(g_BTNH, K) / sums).astype(dtype)
    v_BKHS = _einsum("BKQH,BKQS->BKHS", g_BKQH, weights)
    g_weights = _einsum("BKQH,BKSH->BKQS", g_BKQH, v_BKSH)
    g_logits = (weights * (g_weights - mean)).astype(dtype)
    q = _heads(_einsum("BKQS,BKSH->BKQH", g_logits, k_BKSH), T)
    k_BKHS = _einsum("BKQH,BKQS->BKHS", q_BKQH, g_logits)
    k, v = k_BKHS.transpose(0, 3, 1, 2), v_BKHS.transpose(0, 3, 1, 2)
    return q.astype(dtype), k.astype(dtype), v.astype(dtype), None


_attend = jax.custom_vjp(lambda *args: _forward(*args)[0], nondiff_argnums=(4,))
_attend.defvjp(_forward, _backward)


def _einsum(subscripts: str, a: Array, b: Array) -> Array:
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


def _rows(x_BTNH: Array, num_kv_heads: int) -> Array:
    """Transposes B T N H to B K Q H."""
    B, T, N, H = x_BTNH.shape
    x_BTKGH = x_BTNH.reshape(B, T, num_kv_heads, N // num_kv_heads, H)
    return x_BTKGH.transpose(0, 2, 3, 1, 4).reshape(B, num_kv_heads, -1, H)


def _heads(x_BKQH: Array, num_queries: int) -> Array:
    """Transposes B K Q H to B T N H."""
    B, K, Q, H = x_BKQH.shape
    x_BKGTH = x_BKQH.reshape(B, K, Q // num_queries, num_queries, H)
    return x_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, num_queries, -1, H)
