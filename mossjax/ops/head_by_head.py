"""Attention on a CPU: one head after the other, a few queries at a time.

The scores of all heads are many times what a core's cache holds; those of a few hundred queries of
one head stay in it. Keys that no query of a block may see are not multiplied: half of them where
the mask is causal. Same arguments as `ops.attention.attention`.
"""

import math

import jax
import jax.numpy as jnp

from mossjax.ops.attention import Mask, attention

QUERIES = 320  # of a block: its scores with so many keys are 400 kB
BLOCKS = 8  # at most, as each is compiled for itself
TOGETHER = 2  # heads
FEW = 64  # queries whose scores of all heads are no burden


def on_cpu(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, *,
    bias: jax.Array | None = None, scale: float | None = None,
) -> jax.Array:  # fmt: skip
    """`head_by_head` where many queries are compiled for a CPU, the reference for anything else."""
    if q.shape[1] < FEW:
        return attention(q, k, v, mask, bias=bias, scale=scale)

    def either(implementation):
        return lambda q, k, v: implementation(q, k, v, mask, bias=bias, scale=scale)

    return jax.lax.platform_dependent(
        q, k, v, cpu=either(head_by_head), default=either(attention)
    )


def head_by_head(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, *,
    bias: jax.Array | None = None, scale: float | None = None,
) -> jax.Array:  # fmt: skip
    """See `ops.attention.attention`; a query that sees no key gets zeros here too."""
    b, t, n, h = q.shape
    s, heads = k.shape[1:3]
    q = (q * (h**-0.5 if scale is None else scale)).reshape(b, t, heads, n // heads, h)
    if bias is not None:
        bias = jnp.broadcast_to(bias.astype(jnp.float32), (b, n, t, s))
        bias = bias.reshape(b, heads, n // heads, t, s)
    seen = mask.visible(t, s)
    size = -(-t // min(-(-t // QUERIES), BLOCKS))
    blocks = [(start, min(start + size, t)) for start in range(0, t, size)]

    def head(place):
        """The queries of a group look at its keys: (t, g, h)."""
        row, i = place
        own, keys, values = q[row, :, i], k[row, :, i], v[row, :, i]
        found = []
        for start, end in blocks:
            last = _last(mask, end, s)
            found.append(_look(
                own[start:end], keys[:last], values[:last],
                seen[row if len(seen) > 1 else 0, start:end, :last],
                None if bias is None else bias[row, i, :, start:end, :last],
            ))  # fmt: skip
        return jnp.concatenate(found)

    # Heads that do not wait for each other, so that each of a few threads has one.
    together = math.gcd(b * heads, TOGETHER)
    places = jnp.stack(jnp.divmod(jnp.arange(b * heads), heads), axis=-1)
    out = jax.lax.map(
        lambda some: [head(place) for place in some], places.reshape(-1, together, 2)
    )
    out = jnp.stack(out, axis=1).reshape(b, heads, t, n // heads, -1)
    return jnp.moveaxis(out, 1, 2).reshape(b, t, n, -1)


def _look(q, k, v, seen, bias) -> jax.Array:
    """(t, g, h) queries, (s, h) keys and values, (t, s) bool, (g, t, s) or None -> (t, g, h)."""
    t, g, h = q.shape
    scores = jnp.matmul(q.reshape(t * g, h), k.T, preferred_element_type=jnp.float32)
    scores = scores.reshape(t, g, -1)
    if bias is not None:
        scores = scores + jnp.moveaxis(bias, 0, 1)
    scores = jnp.where(seen[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.where(seen[:, None], weights, 0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jnp.matmul(
        weights.astype(v.dtype).reshape(t * g, -1), v, preferred_element_type=jnp.float32
    )  # fmt: skip
    mixed = mixed.reshape(t, g, -1) / jnp.where(total > 0, total, 1)
    return mixed.astype(v.dtype)


def _last(mask: Mask, end: int, keys: int) -> int:
    """Keys from here on are hidden from all queries before `end`, as far as is known beforehand."""
    if not isinstance(mask.q_offset, int):
        return keys
    end, last = end + mask.q_offset, keys
    if mask.causal:
        last = min(last, end)
    if mask.chunk is not None:
        last = min(last, -(-end // mask.chunk) * mask.chunk)
    return max(last, 1)
