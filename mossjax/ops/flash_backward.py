"""The backward attention kernel: dq, dk and dv in one pass over the visited blocks.

Scores are kept [keys, columns] as in the forward kernel, and are computed again. dk and dv of the
keys in VMEM stay there as float32 while all tiles of queries pass, so heads of a group are summed
without a copy of the keys; dq of a tile is complete when its visits end and is written once. Where
the keys of a row do not fit, they come in parts, and the kernel itself adds to the dq of the parts
before.
"""

import functools

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from mossjax.ops import flash_tile as tile
from mossjax.ops.flash_blocks import Fit, Orders
from mossjax.ops.flash_mask import Schedule


def backward(
    q: jax.Array, k: jax.Array, v: jax.Array, out: jax.Array, d_out: jax.Array,
    log_sum: jax.Array, plan: Schedule, fit: Fit, *,
    h: int, scale: float, outer: bool, orders: Orders, vmem: int, interpret=False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The kernel on padded operands, see `flash_forward.forward` and `flash_blocks.Blocks`.

    Args:
      q, out, d_out: (b, fit.t, n * h). k, v: (b, fit.s, k * h).
      log_sum: (b, k, g, fit.t), as the forward kernel gives it.

    Returns:
      (dq, dk, dv) like q, k, v.
    """
    b, kv_heads = len(q), k.shape[2] // h
    shared = len(plan.visits) == 1
    parts = fit.loads > 1

    def row(x):
        return 0 if shared else lax.div(x, kv_heads)

    def queries(x, m, i):
        return lax.div(x, kv_heads), i, lax.rem(x, kv_heads)

    def loaded(x, m, i):
        return lax.div(x, kv_heads), m, lax.rem(x, kv_heads)

    def by_query(x, m, i):
        return row(x), 0, i

    a_tile = pl.BlockSpec((None, fit.positions, fit.group * h), queries)
    # Two buffers would hide the loads of one part in a head's whole work: not worth the memory.
    a_part = pl.BlockSpec((None, fit.resident, h), loaded, pipeline_mode=pl.Buffered(1))
    dq, dk, dv = pl.pallas_call(
        functools.partial(
            _kernel, fit=fit, h=h, scale=scale, outer=outer, orders=orders, kv_heads=kv_heads
        ),
        grid=(b * kv_heads, fit.loads, fit.tiles),
        in_specs=[
            pl.BlockSpec(
                (None, None, None, 1, fit.visits + 3), lambda x, m, i: (row(x), i, m, 0, 0),
                memory_space=pltpu.SMEM,
            ),
            a_tile,
            a_part,
            a_part,
            a_tile,
            a_tile,
            pl.BlockSpec((None, fit.group, fit.positions), lambda x, m, i: (x, 0, i)),
            pl.BlockSpec((None, 1, fit.positions), by_query),
            pl.BlockSpec((None, 1, fit.positions), by_query),
            pl.BlockSpec((None, 1, fit.resident), lambda x, m, i: (row(x), 0, m)),
        ],
        out_specs=[
            pl.BlockSpec(memory_space=pl.ANY) if parts else a_tile,
            pl.BlockSpec((None, fit.resident, h), loaded),
            pl.BlockSpec((None, fit.resident, h), loaded),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, jnp.float32 if parts else q.dtype),
            jax.ShapeDtypeStruct(k.shape, k.dtype),
            jax.ShapeDtypeStruct(v.shape, v.dtype),
        ],
        scratch_shapes=_scratch(fit, h, q.dtype, outer),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=('parallel', 'arbitrary', 'arbitrary'), vmem_limit_bytes=vmem,
        ),
        interpret=interpret,
        name='flash_backward',
    )(
        plan.visits, q, k, v, out, d_out,
        log_sum.reshape(b * kv_heads, fit.group, fit.t), plan.q_segments, plan.limit,
        plan.kv_segments,
    )
    return dq.astype(q.dtype), dk, dv


def _scratch(fit: Fit, h: int, dtype, outer: bool) -> list:
    queries = (h, fit.columns) if outer else (fit.columns, h)
    keys = (h, fit.resident) if outer else (fit.resident, h)
    strip = pltpu.VMEM((2, fit.keys, fit.strip), dtype)
    row = pltpu.VMEM((tile.SUBLANES, fit.columns), jnp.float32)
    summed = (2, fit.positions, fit.group * h) if fit.loads > 1 else (1, 8, 128)
    return [
        pltpu.VMEM((fit.columns, h), dtype),  # queries, head above head
        pltpu.VMEM((fit.columns, h), dtype),  # d_out alike
        pltpu.VMEM(queries if outer else (8, 128), dtype),  # both transposed
        pltpu.VMEM(queries if outer else (8, 128), dtype),
        pltpu.VMEM((h, fit.resident), dtype),  # keys transposed
        pltpu.VMEM((h, fit.columns), jnp.float32),  # dq^T
        pltpu.VMEM(keys, jnp.float32),  # dk
        pltpu.VMEM(keys, jnp.float32),  # dv
        row,  # log-sum-exp
        row,  # sum of d_out * out
        strip,  # probabilities of two strips
        strip,  # gradients of their scores
        pltpu.VMEM((2, tile.SUBLANES, fit.columns), jnp.int32),
        pltpu.VMEM((fit.keys, 128), jnp.int32),
        pltpu.VMEM(summed, jnp.float32),  # dq of the parts before, and with this one
        pltpu.SemaphoreType.DMA,
    ]


def _kernel(
    visits, q, k, v, out, d_out, log_sum, q_segments, limit, kv_segments, dq, dk, dv,
    queries, d_outs, queries_t, d_outs_t, keys_t, dq_t, dk_sum, dv_sum, log_sums, products, weights,
    d_scores, columns, keys, dq_parts, semaphore, *, fit: Fit, h: int, scale: float,
    outer: bool, orders: Orders, kv_heads: int,
):  # fmt: skip
    head, part, number = (pl.program_id(axis) for axis in range(3))
    sights = tile.Sights(fit, q_segments, limit, kv_segments, columns, keys)
    heads = tile.heads(fit, h)
    ones = jnp.ones((tile.SUBLANES, h), jnp.float32)

    @pl.when(number == 0)
    def _():
        dk_sum[...] = jnp.zeros_like(dk_sum)
        dv_sum[...] = jnp.zeros_like(dv_sum)
        tile.transpose(fit, k, keys_t)

    @pl.when(visits[0, 1] > 0)
    def _():
        for n, lanes, own in heads:
            queries[own], d_outs[own] = q[:, lanes], d_out[:, lanes]
            if outer:
                queries_t[:, own], d_outs_t[:, own] = q[:, lanes].T, d_out[:, lanes].T
            product = out[:, lanes].astype(jnp.float32) * d_out[:, lanes].astype(jnp.float32)
            products[:, own] = tile.dot(ones, product, tile.ROWS_BY_ROWS)
            log_sums[:, own] = tile.everywhere(log_sum[n : n + 1])
        sights.start()

    dq_t[...] = jnp.zeros_like(dq_t)
    state = _State(
        fit, sights, part * fit.resident, scale, outer, orders, k, v, queries, d_outs, queries_t,
        d_outs_t, keys_t, dq_t, dk_sum, dv_sum, log_sums, products, weights, d_scores,
    )
    tile.walk(fit, visits, state.score, state.gather)
    if fit.loads == 1:
        _write_queries(dq, dq_t, heads, scale)
    else:
        # The blocks of a head's dq return in the next part; a copy of one's own, waited for, is
        # in order where the pipeline's copies would not be.
        lanes = pl.multiple_of(lax.rem(head, kv_heads) * (fit.group * h), fit.group * h)
        rows = pl.multiple_of(number * fit.positions, fit.positions)
        place = dq.at[
            lax.div(head, kv_heads), pl.ds(rows, fit.positions), pl.ds(lanes, fit.group * h)
        ]
        _add_queries(place, dq_t, dq_parts, semaphore, heads, scale, first=part == 0)

    @pl.when(number == fit.tiles - 1)
    def _():
        def write(block, _):
            at = pl.ds(pl.multiple_of(block * fit.keys, fit.keys), fit.keys)
            for sums, grad, factor in ((dk_sum, dk, scale), (dv_sum, dv, 1.0)):
                whole = sums[:, at].T if outer else sums[at]
                grad[at] = (whole * factor).astype(grad.dtype)

        lax.fori_loop(0, fit.visits, write, None)


def _write_queries(dq, dq_t, heads, scale: float) -> None:
    for _, lanes, own in heads:
        dq[:, lanes] = (dq_t[:, own] * scale).T.astype(dq.dtype)


def _add_queries(place, dq_t, parts, semaphore, heads, scale: float, first) -> None:
    """Adds a tile's dq to what the parts before have left in HBM."""
    before, now = parts.at[0], parts.at[1]

    def copy(source, target):
        moved = pltpu.make_async_copy(source, target, semaphore)
        moved.start()
        moved.wait()

    _write_queries(now, dq_t, heads, scale)

    @pl.when(jnp.logical_not(first))
    def _():
        copy(place, before)
        now[...] += before[...]

    copy(now, place)


class _State:
    """The two halves of the work on a strip, see `flash_tile.walk`."""

    def __init__(
        self, fit, sights, first, scale, outer, orders, k, v, queries, d_outs, queries_t, d_outs_t,
        keys_t, dq_t, dk, dv, log_sums, products, weights, d_scores,
    ):
        self.fit, self.sights, self.first, self.k, self.v = fit, sights, first, k, v
        self.scale, self.outer, self.orders = scale * tile.LOG2E, outer, orders
        self.queries, self.d_outs = queries, d_outs
        self.queries_t, self.d_outs_t = queries_t, d_outs_t
        self.keys_t, self.dq_t, self.dk, self.dv = keys_t, dq_t, dk, dv
        self.log_sums, self.products = log_sums, products
        self.weights, self.d_scores = weights, d_scores

    def score(self, strip: int, begin, masked: bool) -> tile.Pieces:
        """Probabilities of a strip, and the gradients of its scores."""
        slot, own = strip % 2, tile.strip_columns(self.fit, strip)
        log_sums, products = self.log_sums[:, own], self.products[:, own]
        for row in range(0, self.fit.keys, self.fit.rows):
            here, at = slice(row, row + self.fit.rows), pl.ds(begin + row, self.fit.rows)
            sides = {'scores': (self.k, self.queries), 'd_weights': (self.v, self.d_outs)}
            made = {}
            for name in self.orders[masked]:
                if name in sides:
                    keys, columns = sides[name]
                    made[name] = tile.dot(keys[at], columns[own], tile.ROWS_BY_ROWS)
                elif name == 'd_scores':
                    scores = tile.by_sublane(made['scores'] * self.scale)
                    if masked:
                        scores = self.sights.hide(scores, strip, begin, row, self.first + begin)
                    weights = jnp.exp2(scores - log_sums)
                    d_scores = weights * (tile.by_sublane(made['d_weights']) - products)
                    self.weights[slot, here] = tile.flat(weights).astype(self.weights.dtype)
                    self.d_scores[slot, here] = tile.flat(d_scores).astype(self.weights.dtype)
                yield

    def gather(self, strip: int, begin, masked: bool) -> tile.Pieces:
        """What the strip adds to dv, dk and dq, beside a `score` that is masked or not."""
        slot, own = strip % 2, tile.strip_columns(self.fit, strip)
        dq_t = None
        for row in range(0, self.fit.keys, self.fit.rows):
            here, at = slice(row, row + self.fit.rows), None
            for name in self.orders[masked]:
                if name in ('dv', 'dk', 'dq') and at is None:  # read where it is first used
                    dq_t = self.dq_t[:, own] if dq_t is None else dq_t
                    at = pl.ds(begin + row, self.fit.rows)
                    weights, d_scores = self.weights[slot, here], self.d_scores[slot, here]
                if name == 'dq':
                    dq_t += tile.dot(self.keys_t[:, at], d_scores)
                elif name == 'dv':
                    self._add(self.dv, at, own, weights, self.d_outs, self.d_outs_t)
                elif name == 'dk':
                    self._add(self.dk, at, own, d_scores, self.queries, self.queries_t)
                yield
        self.dq_t[:, own] = dq_t

    def _add(self, sums, at, own: slice, factor: jax.Array, rows, rows_t) -> None:
        """sums += factor @ rows, or the transpose of it, factor being [keys, columns]."""
        if self.outer:
            sums[:, at] += tile.dot(rows_t[:, own], factor, tile.ROWS_BY_ROWS)
        else:
            sums[at] += tile.dot(factor, rows[own])
