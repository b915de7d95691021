"""Which blocks of the scores a mask empties, cuts or leaves whole: the kernels' schedule.

A mask comes down to three integers for every position: a query sees the keys of its own segment
whose index lies below its limit. Causal masks, chunks and offsets are limits; padding and hidden
keys are a segment that no query has.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mossjax.ops.attention import Mask
from mossjax.ops.flash_blocks import Fit

NOBODY = jnp.iinfo(jnp.int32).min  # segment of keys that are seen by none
CUT, FULL, EMPTY = range(3)  # in the order of the visits


class Sight(NamedTuple):
    """A mask as arrays; r is the batch, or 1 where all rows share it.

    Attributes:
      q_segments: (r, t) int32. kv_segments: (r, s) int32.
      limit: (r, t) int32: keys at this index and beyond are not seen.
    """

    q_segments: jax.Array
    kv_segments: jax.Array
    limit: jax.Array


class Schedule(NamedTuple):
    """What a kernel reads; `Fit` says the sizes.

    Attributes:
      q_segments, limit: (r, 1, fit.t). kv_segments: (r, 1, fit.s).
      visits: (r, tiles, loads, 1, visits + 3): how many blocks are cut, how many are visited, then
        the blocks of that load in the order of the visits, cut ones first.
      load: (r, tiles, loads): the load whose keys are to be in VMEM then, the one before where
        nothing is visited.
    """

    q_segments: jax.Array
    kv_segments: jax.Array
    limit: jax.Array
    visits: jax.Array
    load: jax.Array


def sight(mask: Mask, t: int, s: int) -> Sight:
    """The mask of t queries on s keys."""
    at = jnp.arange(t, dtype=jnp.int32) + jnp.asarray(mask.q_offset, jnp.int32)
    limit = jnp.full((t,), s, jnp.int32)
    if mask.causal:
        limit = jnp.minimum(limit, at + 1)
    if mask.chunk is not None:
        limit = jnp.minimum(limit, (at // mask.chunk + 1) * mask.chunk)
    q_segments = jnp.zeros((1, t), jnp.int32) if mask.q_segments is None else mask.q_segments
    kv_segments = jnp.zeros((1, s), jnp.int32) if mask.kv_segments is None else mask.kv_segments
    if mask.kv_valid is not None:
        kv_segments = jnp.where(mask.kv_valid, kv_segments, NOBODY)
    rows = max(len(q_segments), len(kv_segments))
    return Sight(
        jnp.broadcast_to(q_segments.astype(jnp.int32), (rows, t)),
        jnp.broadcast_to(kv_segments.astype(jnp.int32), (rows, s)),
        jnp.broadcast_to(limit, (rows, t)),
    )


def schedule(seen: Sight, fit: Fit) -> Schedule:
    """The blocks that each tile of queries visits."""
    t, s = seen.q_segments.shape[1], seen.kv_segments.shape[1]
    queries = ((0, 0), (0, fit.t - t))
    q_segments, limit = (jnp.pad(x, queries, 'edge') for x in (seen.q_segments, seen.limit))
    kv_segments = jnp.pad(seen.kv_segments, ((0, 0), (0, fit.s - s)), constant_values=NOBODY)
    kinds = block_kinds(Sight(q_segments, kv_segments, limit), fit)
    rows, tiles, _ = kinds.shape
    kinds = kinds.reshape(rows, tiles, fit.loads, 1, fit.visits)
    block = jnp.arange(fit.visits, dtype=jnp.int32)
    order = jnp.sort(kinds * fit.visits + block, axis=-1) % fit.visits
    cut, visited = ((kinds <= kind).sum(-1, keepdims=True) for kind in (CUT, FULL))
    visits = jnp.concatenate([cut, visited, order, order[..., -1:]], axis=-1)
    used = jnp.where(visited[..., 0, 0] > 0, jnp.arange(fit.loads, dtype=jnp.int32), 0)
    return Schedule(
        q_segments[:, None], kv_segments[:, None], limit[:, None],
        visits.astype(jnp.int32), jax.lax.cummax(used, axis=2),
    )  # fmt: skip


def block_kinds(seen: Sight, fit: Fit) -> jax.Array:
    """(r, tiles, blocks) int32: FULL, CUT or EMPTY for every tile of queries and block of keys.

    FULL and EMPTY are certain. A block may be called CUT that is empty: one whose segments are
    interleaved.
    """
    q_low, q_high = _range(seen.q_segments, fit.tiles)
    k_low, k_high = _range(seen.kv_segments, fit.visits * fit.loads)
    limit_low, limit_high = _range(seen.limit, fit.tiles)
    q_low, q_high, limit_low, limit_high = (
        x[:, :, None] for x in (q_low, q_high, limit_low, limit_high)
    )
    k_low, k_high = k_low[:, None], k_high[:, None]
    begin = jnp.arange(fit.visits * fit.loads, dtype=jnp.int32) * fit.keys
    alike = (q_low == q_high) & (k_low == k_high) & (q_low == k_low)
    apart = (q_high < k_low) | (k_high < q_low)
    full = alike & (begin + fit.keys <= limit_low)
    empty = apart | (begin >= limit_high)
    return jnp.where(empty, EMPTY, jnp.where(full, FULL, CUT)).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=('fit', 't', 's'))
def visited(mask: Mask, fit: Fit, t: int, s: int) -> tuple[jax.Array, jax.Array]:
    """(full, cut) blocks of fit.keys x fit.columns that the kernels visit in each row of the
    batch, for one key-value head: int32 (r,) each. Times a block's cost it is the kernel's time."""
    visits = schedule(sight(mask, t, s), fit).visits
    cut, both = visits[..., 0].sum((1, 2, 3)), visits[..., 1].sum((1, 2, 3))
    return both - cut, cut


def _range(x: jax.Array, blocks: int) -> tuple[jax.Array, jax.Array]:
    parts = x.reshape(len(x), blocks, -1)
    return parts.min(-1), parts.max(-1)
