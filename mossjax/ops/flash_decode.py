"""The decoding kernel: a few queries over a long cache, of which each lane fills its own length.

A step reads keys and values once and multiplies each of them with the few queries of its group, so
that it is as fast as the memory if the products keep up. Keys and values are what the matrix unit
holds and the queries are what flows through it: weights of all heads come out as [queries, keys],
whole registers whatever the number of heads in a group. One visit takes a block of slots of all
heads of a lane; blocks beyond a lane's length are not fetched. Rows in int8 are multiplied as they
are, and the scores and weights by their scales.
"""

import functools

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from mossjax.ops import flash_tile as tile
from mossjax.ops.flash_tile import HIDDEN, LOG2E
from mossjax.ops.quant import Int8

SLOTS = 512  # of a visit
ROWS = 64  # queries of a group, most that the kernel takes
NEW = 16  # new positions are padded to a multiple of this
VMEM = 12 * 2**20  # bytes of two blocks of keys and two of values, at most


def takes(q: jax.Array, cache: jax.Array | Int8) -> bool:
    """Whether the kernel can read this cache (l, lanes, k, s, h) for queries (b, t, n, h)."""
    _, _, kv_heads, slots, h = cache.shape
    rows = q.shape[1] * q.shape[2] // kv_heads
    block = kv_heads * min(SLOTS, slots) * h * q.dtype.itemsize
    return rows <= ROWS and slots >= NEW and h % 128 == 0 and 4 * block <= VMEM


def attend(
    q: jax.Array, new: tuple[jax.Array, jax.Array],
    cache: tuple[jax.Array | Int8, jax.Array | Int8], lengths: jax.Array, layer: jax.Array,
    first: jax.Array | int = 0, *, interpret=False,
) -> jax.Array:  # fmt: skip
    """As `ops.cached_attention.cached_attention`, of one layer and some lanes of a whole cache.

    Args:
      q: (b, t, n, h), h a multiple of 128. new: keys and values (b, t, k, h).
      cache: keys and values (l, lanes, k, s, h), floating or in int8 by row.
      lengths: (b,) int32, slots that are real of lanes first to first + b - 1.
      layer, first: int32.

    Returns:
      (b, t, n, h) in q.dtype.
    """
    b, t, n, h = q.shape
    kv_heads, slots = cache[0].shape[2:4]
    scales = [x.scale[..., 0] for x in cache if isinstance(x, Int8)]
    cache = [x.values if isinstance(x, Int8) else x for x in cache]
    group, size = n // kv_heads, min(SLOTS, slots)
    rows = group * t
    grouped = q.reshape(b, t, kv_heads, group, h).transpose(0, 2, 3, 1, 4)
    padding = [(0, 0), (0, 0), (0, -t % NEW), (0, 0)]
    fresh = [jnp.pad(x.transpose(0, 2, 1, 3), padding) for x in new]

    def lane(i, j, *_):
        return i, 0, 0, 0

    def block(i, j, lengths, place):
        last = jnp.maximum(lax.div(lengths[i] + size - 1, size) - 1, 0)
        return place[0], place[1] + i, 0, jnp.minimum(j, last), 0

    def scale_block(*at):
        *head, slot, _ = block(*at)
        return *head, slot

    slab = pl.BlockSpec((None, None, kv_heads, size, h), block)
    by_slot = pl.BlockSpec((None, None, kv_heads, size), scale_block)
    out = pl.pallas_call(
        functools.partial(_kernel, t=t, scale=h**-0.5 * LOG2E),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(b, pl.cdiv(slots, size)),
            in_specs=[
                pl.BlockSpec((None, kv_heads, rows, h), lane),
                *[pl.BlockSpec((None, *x.shape[1:]), lane) for x in fresh], slab, slab,
                *[by_slot for _ in scales],
            ],
            out_specs=pl.BlockSpec((None, kv_heads, rows, h), lane),
            scratch_shapes=[
                pltpu.VMEM((kv_heads, rows, 1), jnp.float32),
                pltpu.VMEM((kv_heads, rows, 1), jnp.float32),
                pltpu.VMEM((kv_heads, rows, h), jnp.float32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((b, kv_heads, rows, h), q.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'arbitrary')),
        interpret=interpret,
        name='flash_decode',
    )(
        lengths.astype(jnp.int32), jnp.stack([layer, first]).astype(jnp.int32),
        grouped.reshape(b, kv_heads, rows, h), *fresh, *cache, *scales,
    )
    out = out.reshape(b, kv_heads, group, t, h).transpose(0, 3, 1, 2, 4)
    return out.reshape(b, t, n, h)


def _kernel(lengths, place, q, k_new, v_new, k, v, *refs, t: int, scale: float):
    """One visit; the softmax is kept in base 2, maximum, sum and weighted values of each head."""
    del place
    *scales, out, top, total, acc = refs
    lane, block = pl.program_id(0), pl.program_id(1)
    heads, size = range(k.shape[0]), k.shape[1]
    rest = lengths[lane] - block * size  # real slots from this block on

    def scores(head, keys):
        return tile.dot(q[head], keys.astype(q.dtype), tile.ROWS_BY_ROWS) * scale

    @pl.when(block == 0)
    def _():
        rows = q.shape[1]
        at = lax.broadcasted_iota(jnp.int32, (rows, k_new.shape[1]), 0)
        key = lax.broadcasted_iota(jnp.int32, (rows, k_new.shape[1]), 1)
        before = key <= lax.rem(at, t)
        for head in heads:
            found = jnp.where(before, scores(head, k_new[head]), HIDDEN)
            top[head] = jnp.max(found, axis=1, keepdims=True)
            weights = jnp.exp2(found - top[head])
            total[head] = jnp.sum(weights, axis=1, keepdims=True)
            acc[head] = tile.dot(weights.astype(v_new.dtype), v_new[head])

    def visit(cut: bool):
        found = [scores(head, k[head]) for head in heads]
        if scales:
            found = [found[head] * scales[0][head : head + 1] for head in heads]
        if cut:
            seen = lax.broadcasted_iota(jnp.int32, found[0].shape, 1) < rest
            found = [jnp.where(seen, x, HIDDEN) for x in found]
        higher = [jnp.maximum(top[head], jnp.max(found[head], 1, keepdims=True)) for head in heads]
        weights = [jnp.exp2(found[head] - higher[head]) for head in heads]
        for head in heads:
            faded = jnp.exp2(top[head] - higher[head])
            top[head] = higher[head]
            total[head] = total[head] * faded + jnp.sum(weights[head], 1, keepdims=True)
            values, own = v[head], weights[head]
            if scales:
                own = own * scales[1][head : head + 1]
                own = jnp.where(seen, own, 0) if cut else own
            if cut:  # behind the last slot lies what nobody has written
                real = lax.broadcasted_iota(jnp.int32, values.shape, 0) < rest
                values = jnp.where(real, values, 0)
            acc[head] = acc[head] * faded + tile.dot(own.astype(q.dtype), values.astype(q.dtype))

    @pl.when(rest >= size)
    def _():
        visit(cut=False)

    @pl.when((rest > 0) & (rest < size))
    def _():
        visit(cut=True)

    @pl.when(block == pl.num_programs(1) - 1)
    def _():
        for head in heads:
            out[head] = (acc[head] / total[head]).astype(out.dtype)
