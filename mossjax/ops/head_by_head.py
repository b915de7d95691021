"""Attention on a CPU: a few heads after the others, a few queries at a time.

The scores of all heads are many times what a core's cache holds; those of a few hundred queries of
a few heads stay in it. Keys that no query of a block may see are not multiplied: half of them where
the mask is causal. Same arguments as `ops.attention.attention`.
"""

import jax
import jax.numpy as jnp

from mossjax.ops.attention import Mask, attention

QUERIES = 320  # of a block
BLOCKS = 8  # at most, as each is compiled for itself
SCORES = 2**19  # of a block and the heads that are looked at together: 2 MB
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
    group = n // heads
    q = (q * (h**-0.5 if scale is None else scale)).reshape(b, t, heads, group, h)
    if bias is not None:
        bias = jnp.broadcast_to(bias.astype(jnp.float32), (b, n, t, s))
        bias = bias.reshape(b, heads, group, t, s)
    seen = mask.visible(t, s)
    size = -(-t // min(-(-t // QUERIES), BLOCKS))
    blocks = [(start, min(start + size, t)) for start in range(0, t, size)]
    # One product for several heads: each step of a program wakes all threads.
    together = _divisor(heads, SCORES // (group * size * s))

    steps = heads // together

    def some(i, out):
        """Puts some heads of a row in their place: the queries of a group look at its keys."""
        row, first = i // steps, i % steps * together

        def cut(x, axis):
            x = jax.lax.dynamic_index_in_dim(x, row, keepdims=False)
            return jax.lax.dynamic_slice_in_dim(x, first, together, axis)

        own = cut(q, 1).transpose(1, 2, 0, 3)  # (head, group, t, h)
        keys, values = (cut(x, 1).swapaxes(0, 1) for x in (k, v))
        biased = None if bias is None else cut(bias, 0)
        found = []
        for start, end in blocks:
            last = _last(mask, end, s)
            found.append(_look(
                own[:, :, start:end], keys[:, :last], values[:, :last],
                seen[row if len(seen) > 1 else 0, start:end, :last],
                None if biased is None else biased[:, :, start:end, :last],
            ))  # fmt: skip
        found = jnp.concatenate(found, axis=2).transpose(2, 0, 1, 3)  # (t, head, group, h)
        place = (row, 0, first * group, 0)
        return jax.lax.dynamic_update_slice(out, found.reshape(1, t, together * group, -1), place)

    return jax.lax.fori_loop(0, b * steps, some, jnp.zeros((b, t, n, v.shape[-1]), v.dtype))


def _look(q, k, v, seen, bias) -> jax.Array:
    """(n, g, t, h) queries, (n, s, h) keys and values, (t, s) bool, (n, g, t, s) or None -> q's."""
    n, g, t, h = q.shape
    scores = jnp.einsum(
        'nth,nsh->nts', q.reshape(n, g * t, h), k, preferred_element_type=jnp.float32
    ).reshape(n, g, t, -1)  # fmt: skip
    if bias is not None:
        scores = scores + bias
    nothing = jnp.finfo(jnp.float32).min
    scores = jnp.where(seen, scores, nothing)
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jnp.einsum(
        'nts,nsh->nth', weights.astype(v.dtype).reshape(n, g * t, -1), v,
        preferred_element_type=jnp.float32,
    )  # fmt: skip
    mixed = mixed.reshape(n, g, t, -1) / total
    return jnp.where(top > nothing, mixed, 0).astype(v.dtype)


def _divisor(number: int, most: int) -> int:
    """The largest divisor that is at most `most`, or 1."""
    return next((d for d in range(min(number, most), 1, -1) if number % d == 0), 1)


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
