"""Attention of a few new positions over a cache, a length per row, and over one another.

The new keys and values are an argument of their own: the cache is only read, so that a layer never
hands a copy of it on, and all layers' news are written into it at once afterwards.

Two ways to read it. `at_once` takes all slots of a layer, which is what an accelerator's memory is
fast at. `in_blocks` takes as many as the longest row fills, which on a CPU is most of the time. On
TPUs a kernel takes what each row fills (`nn.flash_cache`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mossjax.ops.quant import Int8

BLOCK = 128  # slots that are read at once
LOW = jnp.finfo(jnp.float32).min

Pair = tuple[jax.Array | Int8, jax.Array | Int8]  # keys and values
# (queries (b, t, n, h), new keys and values (b, t, k, h), a layer) -> attended (b, t, n, h)
Attend = Callable[[jax.Array, tuple[jax.Array, jax.Array], Any], jax.Array]
# (keys and values (l, lanes, k, s, h), lengths (b,), first lane) -> (layers for a scan, Attend)
Recall = Callable[[Pair, jax.Array, jax.Array | int], tuple[Any, Attend]]


def lanes(buffer: jax.Array, first: jax.Array | int, count: int) -> jax.Array:
    """`count` entries of the first axis."""
    whole = count == buffer.shape[0]
    return buffer if whole else jax.lax.dynamic_slice_in_dim(buffer, first, count)


def at_once(pair: Pair, lengths: jax.Array, first: jax.Array | int) -> tuple[Pair, Attend]:
    """Reads all slots; the layers are those of the cache. Arguments: see `Recall`."""

    def attend(q, new, layer):
        own = jax.tree.map(lambda x: lanes(x, first, len(lengths)), layer)
        return cached_attention(q, new, own, lengths)

    return pair, attend


def in_blocks(pair: Pair, lengths: jax.Array, first: jax.Array | int) -> tuple[jax.Array, Attend]:
    """Reads the filled blocks; the layers are their numbers. Arguments: see `Recall`.

    A block that a row does not reach changes no bit of it.
    """
    count, (_, _, _, slots, _) = len(lengths), pair[0].shape
    size = min(BLOCK, slots)
    filled = (jnp.max(lengths) + size - 1) // size

    def read(layer, start):
        def part(x):
            shape = (1, count, x.shape[2], size, x.shape[4])
            return jax.lax.dynamic_slice(x, (layer, first, 0, start, 0), shape)[0]

        return jax.tree.map(part, pair)

    def attend(q, new, layer):
        k_new, v_new = (x.transpose(0, 2, 1, 3) for x in new)
        grouped, scale = _by_kv_head(q, k_new.shape[1]), q.shape[-1] ** -0.5
        before = _before(q.shape[1], q.shape[2] // k_new.shape[1])
        fresh = jnp.where(before, _scores(grouped, k_new) * scale, LOW)
        top = fresh.max(-1, keepdims=True)
        fresh = jnp.exp(fresh - top)

        def block(i, carry):
            top, total, out = carry
            start = jnp.minimum(i * size, slots - size)
            keys, values = read(layer, start)
            at = start + jnp.arange(size)
            seen = (at >= i * size) & (at < lengths[:, None, None, None])
            scores = jnp.where(seen, _scores(grouped, keys) * scale, LOW)
            higher = jnp.maximum(top, scores.max(-1, keepdims=True))
            faded = jnp.exp(top - higher)
            weights = jnp.where(seen, jnp.exp(scores - higher), 0.0)
            return (
                higher, total * faded + weights.sum(-1, keepdims=True),
                out * faded + _weighted(weights, values, q.dtype),
            )  # fmt: skip

        began = top, fresh.sum(-1, keepdims=True), _weighted(fresh, v_new, q.dtype)
        _, total, out = jax.lax.fori_loop(0, filled, block, began)
        return _by_position(out / total, q)

    return jnp.arange(pair[0].shape[0]), attend


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
    grouped = _by_kv_head(q, kv_heads)
    scale = h**-0.5
    old = _scores(grouped, k_old) * scale
    fresh = _scores(grouped, k_new) * scale
    seen = jnp.arange(slots) < lengths[:, None, None, None]
    before = _before(t, n // kv_heads)
    old, fresh = jnp.where(seen, old, LOW), jnp.where(before, fresh, LOW)
    top = jnp.maximum(old.max(-1, keepdims=True), fresh.max(-1, keepdims=True))
    old, fresh = jnp.where(seen, jnp.exp(old - top), 0.0), jnp.exp(fresh - top)
    total = old.sum(-1, keepdims=True) + fresh.sum(-1, keepdims=True)
    out = _weighted(old / total, v_old, q.dtype) + _weighted(fresh / total, v_new, q.dtype)
    return _by_position(out, q)


def _by_kv_head(q: jax.Array, kv_heads: int) -> jax.Array:
    """(b, t, n, h) -> (b, k, g * t, h): query heads of one kv head beside its queries."""
    b, t, n, h = q.shape
    grouped = q.reshape(b, t, kv_heads, n // kv_heads, h).transpose(0, 2, 3, 1, 4)
    return grouped.reshape(b, kv_heads, n // kv_heads * t, h)


def _by_position(out: jax.Array, q: jax.Array) -> jax.Array:
    """Back to the shape and the dtype of q."""
    b, t, n, h = q.shape
    out = out.reshape(b, out.shape[1], -1, t, h).transpose(0, 3, 1, 2, 4)
    return out.reshape(b, t, n, h).astype(q.dtype)


def _before(t: int, group: int) -> jax.Array:
    """bool (g * t, t): the new positions that a query sees; queries run fastest."""
    return jnp.tile(jnp.tril(jnp.ones((t, t), bool)), (group, 1))


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
