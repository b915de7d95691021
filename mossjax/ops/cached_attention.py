"""Attention of a few new positions over a cache, a length per row, and over one another.

The new keys and values are an argument of their own: the cache is only read, so that a layer never
hands a copy of it on, and all layers' news are written into it at once afterwards.
"""

import jax
import jax.numpy as jnp

from mossjax.ops.quant import Int8


def cached_attention(
    q: jax.Array,
    new: tuple[jax.Array, jax.Array],
    cache: tuple[jax.Array | Int8, jax.Array | Int8],
    lengths: jax.Array,
) -> jax.Array:
    """softmax(q k^T / sqrt(h)) v over the first lengths[b] cached keys and the new ones so far.

    Scores and softmax in float32. New positions behind the real ones of a row only see more: their
    results are finite and mean nothing.

    Args:
      q: (b, t, n, h) queries, positions lengths[b] to lengths[b] + t - 1.
      new: keys and values (b, t, k, h) of the same positions; n is a multiple of k.
      cache: keys and values (b, k, s, h), floating or quantised by row.
      lengths: (b,) int32, cached keys that are real.

    Returns:
      (b, t, n, h) in q.dtype.
    """
    b, t, n, h = q.shape
    k_new, v_new = (x.transpose(0, 2, 1, 3) for x in new)  # (b, k, t, h)
    k_old, v_old = cache
    kv_heads, slots = k_old.shape[1], k_old.shape[2]
    # Query heads of one kv head stand beside its queries: one matmul a kv head.
    grouped = q.reshape(b, t, kv_heads, n // kv_heads, h).transpose(0, 2, 3, 1, 4)
    grouped = grouped.reshape(b, kv_heads, n // kv_heads * t, h)
    scale = h**-0.5
    old = _scores(grouped, k_old) * scale
    fresh = _scores(grouped, k_new) * scale
    seen = jnp.arange(slots) < lengths[:, None, None, None]
    before = jnp.tril(jnp.ones((t, t), bool))
    before = jnp.tile(before, (n // kv_heads, 1))  # queries run fastest
    low = jnp.finfo(jnp.float32).min
    old, fresh = jnp.where(seen, old, low), jnp.where(before, fresh, low)
    top = jnp.maximum(old.max(-1, keepdims=True), fresh.max(-1, keepdims=True))
    old, fresh = jnp.where(seen, jnp.exp(old - top), 0.0), jnp.exp(fresh - top)
    total = old.sum(-1, keepdims=True) + fresh.sum(-1, keepdims=True)
    out = _weighted(old / total, v_old, q.dtype) + _weighted(fresh / total, v_new, q.dtype)
    out = out.reshape(b, kv_heads, n // kv_heads, t, h).transpose(0, 3, 1, 2, 4)
    return out.reshape(b, t, n, h).astype(q.dtype)


def _scores(q, keys) -> jax.Array:
    """(b, k, r, h) and (b, k, s, h) -> float32 (b, k, r, s)."""
    if isinstance(keys, Int8):
        plain = _scores(q, keys.values.astype(q.dtype))
        return plain * keys.scale[..., 0][:, :, None]
    return jnp.einsum('bkrh,bksh->bkrs', q, keys, preferred_element_type=jnp.float32)


def _weighted(weights, values, dtype) -> jax.Array:
    """float32 (b, k, r, s) and (b, k, s, h) -> float32 (b, k, r, h)."""
    if isinstance(values, Int8):
        scaled = weights * values.scale[..., 0][:, :, None]
        return _weighted(scaled, values.values.astype(dtype), dtype)
    return jnp.einsum(
        'bkrs,bksh->bkrh', weights.astype(dtype), values, preferred_element_type=jnp.float32
    )
