"""The forward attention kernel: softmax(q k^T) v over the visited blocks, scores [keys, columns].

With keys down the sublanes the statistics of a column lie along lanes, its sums are additions of
whole registers, and O^T = V^T P has as many columns as the tile: wide matrix units are full. Two
roads lead through a tile. Where the norms bound the scores closely enough (Cauchy-Schwarz), the
bound stands for the maximum: nothing is searched and nothing rescaled (Qwen3 norms queries and
keys). Elsewhere the maximum is found on the way. The tile's own norms decide.
"""

from collections.abc import Iterator
import functools

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from mossjax.ops import flash_tile as tile
from mossjax.ops.flash_blocks import Fit
from mossjax.ops.flash_mask import Schedule

NOTHING = 1e30  # log-sum-exp of a query that sees no key: its probabilities are 2^-1e30 = 0
# Scores in base 2 lie in [-bound, bound]. exp2(score - bound + SHIFT) is at most 2^SHIFT, which
# leaves 2^63 for sums over keys and values; and the largest of a row is at least
# 2^(SHIFT - 2 BOUND) = 2^-100, so what is 2^-26 times smaller is still a normal float32.
SHIFT = 64.0
BOUND = 82.0
ONES = 16  # rows of ones below V^T: the product that sums values sums their weights as well


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, plan: Schedule, fit: Fit, *,
    h: int, scale: float, vmem: int, interpret=False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The kernel on padded operands.

    Args:
      q: (b, fit.t, n * h), h a multiple of 128. k, v: (b, fit.s, k * h). Heads of a group are
        neighbours.
      plan: `flash_mask.schedule` of the mask and `fit`.

    Returns:
      (out like q, log-sum-exp in base 2 (b, k, g, fit.t) float32, and which tiles took the
      bound for the maximum (b, k, tiles) bool).
    """
    b, kv_heads = len(q), k.shape[2] // h
    # Head by head: with an axis of their own they would be written out anew, in float32.
    longest = jnp.stack([
        jnp.max(jnp.sum(jnp.square(head.astype(jnp.float32)), -1), 1) ** 0.5
        for head in jnp.split(k, kv_heads, -1)
    ], 1)  # fmt: skip
    shared = len(plan.visits) == 1

    def row(x):
        return 0 if shared else lax.div(x, kv_heads)

    def loaded(x, i, m, load, longest):
        at = (row(x) * fit.tiles + i) * fit.loads + m
        return lax.div(x, kv_heads), load[at], lax.rem(x, kv_heads)

    def queries(x, i, m, *_):
        return lax.div(x, kv_heads), i, lax.rem(x, kv_heads)

    def by_query(x, i, m, *_):
        return row(x), 0, i

    out = pl.pallas_call(
        functools.partial(_kernel, fit=fit, h=h, scale=scale),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(b * kv_heads, fit.tiles, fit.loads),
            in_specs=[
                pl.BlockSpec(
                    (None, None, None, 1, fit.visits + 3), lambda x, i, m, *_: (row(x), i, m, 0, 0),
                    memory_space=pltpu.SMEM,
                ),
                pl.BlockSpec((None, fit.positions, fit.group * h), queries),
                pl.BlockSpec((None, fit.resident, h), loaded),
                pl.BlockSpec((None, fit.resident, h), loaded),
                pl.BlockSpec((None, 1, fit.positions), by_query),
                pl.BlockSpec((None, 1, fit.positions), by_query),
                pl.BlockSpec((None, 1, fit.resident), lambda x, i, m, *_: (row(x), 0, m)),
            ],
            out_specs=[
                pl.BlockSpec((None, fit.positions, fit.group * h), queries),
                pl.BlockSpec((None, fit.group, fit.positions), lambda x, i, m, *_: (x, 0, i)),
                pl.BlockSpec((None, None, tile.SUBLANES, 128), lambda x, i, m, *_: (x, i, 0, 0)),
            ],
            scratch_shapes=_scratch(fit, h, q.dtype),
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((b * kv_heads, fit.group, fit.t), jnp.float32),
            jax.ShapeDtypeStruct((b * kv_heads, fit.tiles, tile.SUBLANES, 128), jnp.int32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=('parallel', 'arbitrary', 'arbitrary'), vmem_limit_bytes=vmem,
        ),
        interpret=interpret,
        name='flash_forward',
    )(
        plan.load.reshape(-1), longest.reshape(-1), plan.visits, q, k, v, plan.q_segments,
        plan.limit, plan.kv_segments,
    )
    attended, log_sum, known = out
    return (
        attended,
        log_sum.reshape(b, kv_heads, fit.group, fit.t),
        known[:, :, 0, 0].reshape(b, kv_heads, fit.tiles) > 0,
    )


def _scratch(fit: Fit, h: int, dtype) -> list:
    strip = 2, fit.keys, fit.strip
    return [
        pltpu.VMEM((fit.columns, h), dtype),  # queries, head above head
        pltpu.VMEM((h + ONES, fit.resident), dtype),  # values transposed, ones below
        pltpu.VMEM((h + ONES, fit.columns), jnp.float32),  # O^T so far, sums of weights below
        pltpu.VMEM((tile.SUBLANES, fit.columns), jnp.float32),  # maximum so far, or the bound
        pltpu.VMEM(strip, jnp.float32),  # scores of two strips
        pltpu.VMEM(strip, dtype),  # weights of two strips
        pltpu.VMEM((2, tile.SUBLANES, fit.strip), jnp.float32),  # maxima of two strips
        pltpu.VMEM((2, tile.SUBLANES, fit.columns), jnp.int32),
        pltpu.VMEM((fit.keys, 128), jnp.int32),
        pltpu.SMEM((1,), jnp.int32),  # is the bound the maximum?
    ]


def _kernel(
    load, longest, visits, q, k, v, q_segments, limit, kv_segments, out, log_sum, known,
    queries, values_t, acc, top, scores, weights, largest, columns, keys, road, *, fit: Fit,
    h: int, scale: float,
):  # fmt: skip
    head, number, part = (pl.program_id(axis) for axis in range(3))
    sights = tile.Sights(fit, q_segments, limit, kv_segments, columns, keys)
    heads = tile.heads(fit, h)
    scale *= tile.LOG2E

    @pl.when((number == 0) | (fit.loads > 1))
    def _():
        values_t[h:] = jnp.ones((ONES, fit.resident), values_t.dtype)
        tile.transpose(fit, v, values_t)

    @pl.when(part == 0)
    def _():
        for _, lanes, own in heads:
            queries[own] = q[:, lanes]
        acc[...] = jnp.zeros_like(acc)
        sights.start()
        squares = queries[...] * queries[...]
        norms = tile.dot(jnp.ones((tile.SUBLANES, h), squares.dtype), squares, tile.ROWS_BY_ROWS)
        bound = jnp.sqrt(norms) * (longest[head] * scale)
        close = jnp.max(bound) <= BOUND
        top[...] = jnp.where(close, bound - SHIFT, tile.UNSEEN)
        road[0] = close.astype(jnp.int32)
        known[...] = jnp.full(known.shape, road[0])

    state = _State(
        fit, sights, part * fit.resident, scale, k, queries, values_t, acc, top, scores, weights,
        largest,
    )

    @pl.when(road[0] > 0)
    def _():
        tile.walk(fit, visits, state.weigh, state.gather)

    @pl.when(road[0] == 0)
    def _():
        tile.walk(fit, visits, state.score, state.weigh_and_gather)

    @pl.when(part == fit.loads - 1)
    def _():
        sums = acc[h : h + 1]
        some = sums > 0
        attended = acc[:h] * jnp.where(some, 1.0 / sums, 0.0)
        logs = jnp.where(some, top[:1] + jnp.log2(sums), NOTHING)
        for n, lanes, own in heads:
            out[:, lanes] = attended[:, own].T.astype(out.dtype)
            log_sum[n : n + 1] = logs[:, own]


class _State:
    """The two roads' halves, see `flash_tile.walk`."""

    def __init__(
        self, fit, sights, first, scale, k, queries, values_t, acc, top, scores, weights, largest
    ):
        self.fit, self.sights, self.first, self.scale = fit, sights, first, scale
        self.k, self.queries, self.values_t, self.acc, self.top = k, queries, values_t, acc, top
        self.scores, self.weights, self.largest = scores, weights, largest

    def _rows(self) -> Iterator[tuple[int, slice]]:
        for row in range(0, self.fit.keys, self.fit.rows):
            yield row, slice(row, row + self.fit.rows)

    def _scores(self, strip: int, begin, row: int, masked: bool) -> jax.Array:
        """In base 2, [rows / 8, 8, strip]."""
        keys = self.k[pl.ds(begin + row, self.fit.rows)]
        own = tile.strip_columns(self.fit, strip)
        # Scaled here, not in q: there the product would be rounded once more.
        scores = tile.by_sublane(tile.dot(keys, self.queries[own], tile.ROWS_BY_ROWS) * self.scale)
        if not masked:
            return scores
        return self.sights.hide(scores, strip, begin, row, self.first + begin)

    def _values(self, begin, row: int, weights: jax.Array) -> jax.Array:
        return tile.dot(self.values_t[:, pl.ds(begin + row, self.fit.rows)], weights)

    def score(self, strip: int, begin, masked: bool) -> tile.Pieces:
        """Scores of a strip and the largest in each column, one for each sublane."""
        slot = strip % 2
        largest = jnp.full((tile.SUBLANES, self.fit.strip), tile.HIDDEN, jnp.float32)
        for row, here in self._rows():
            scores = self._scores(strip, begin, row, masked)
            self.scores[slot, here] = tile.flat(scores)
            largest = jnp.maximum(largest, jnp.max(scores, axis=0))
            yield
        self.largest[slot] = largest

    def weigh_and_gather(self, strip: int, begin, masked: bool) -> tile.Pieces:
        """Weights of those scores under the new maximum, and the sum of their values."""
        slot, own = strip % 2, tile.strip_columns(self.fit, strip)
        before = self.top[:, own]
        largest = jnp.max(self.largest[slot], axis=0, keepdims=True)
        top = jnp.maximum(before, tile.everywhere(largest))
        self.top[:, own] = top
        gathered = None
        for row, here in self._rows():
            weights = jnp.exp2(tile.by_sublane(self.scores[slot, here]) - top)
            more = self._values(begin, row, tile.flat(weights).astype(self.values_t.dtype))
            gathered = more if gathered is None else gathered + more
            yield
        decayed = tile.by_sublane(self.acc[:, own]) * jnp.exp2(before - top)
        self.acc[:, own] = tile.flat(decayed) + gathered

    def weigh(self, strip: int, begin, masked: bool) -> tile.Pieces:
        """Weights of a strip under the bound."""
        slot, top = strip % 2, self.top[:, tile.strip_columns(self.fit, strip)]
        for row, here in self._rows():
            weights = jnp.exp2(self._scores(strip, begin, row, masked) - top)
            self.weights[slot, here] = tile.flat(weights).astype(self.weights.dtype)
            yield

    def gather(self, strip: int, begin, masked: bool) -> tile.Pieces:
        """The sum of the values under those weights."""
        slot, own = strip % 2, tile.strip_columns(self.fit, strip)
        gathered = self.acc[:, own]
        for row, here in self._rows():
            gathered += self._values(begin, row, self.weights[slot, here])
            yield
        self.acc[:, own] = gathered
