"""The forward attention kernel: softmax(q k^T) v over the visited blocks, scores [keys, columns].

With keys down the sublanes the statistics of a column lie along lanes, its sums are additions of
whole registers, and O^T = V^T P has as many columns as the tile: wide matrix units are full. Two
roads lead through a tile. Where the norms bound the scores closely enough (Cauchy-Schwarz), the
bound stands for the maximum: nothing is searched and nothing rescaled (Qwen3 norms queries and
keys). Elsewhere the maximum is found on the way. The tile's own norms decide.
"""

from collections.abc import Callable, Iterator
import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Merged:
    """Keys and values of whole rows, heads side by side: one of the places they may come from.

    Others (`flash_prefill.Held`) have these attributes too.

    Attributes:
      operands: the arrays that a kernel reads them from.
      heads: key-value heads. size: of a head, a multiple of 128.
      scalars: (n,) int32 arrays that `specs` wants to know.
    """

    operands: tuple[jax.Array, ...]  # k, v: (b, s, k * h)
    size: int
    scalars = ()

    @property
    def heads(self) -> int:
        return self.operands[0].shape[2] // self.size

    def longest(self) -> jax.Array:
        """(b, k) float32: no key of a head is longer."""
        # Head by head: with an axis of their own they would be written out anew, in float32.
        return jnp.stack([
            jnp.max(jnp.sum(jnp.square(head.astype(jnp.float32)), -1), 1) ** 0.5
            for head in jnp.split(self.operands[0], self.heads, -1)
        ], 1)  # fmt: skip

    def specs(self, fit: Fit, load: Callable) -> list[pl.BlockSpec]:
        """Of the operands. load: indices of the grid and scalars -> which load of the keys."""

        def loaded(x, *rest):
            return lax.div(x, self.heads), load(x, *rest), lax.rem(x, self.heads)

        return [pl.BlockSpec((None, fit.resident, self.size), loaded)] * 2

    def scratch(self, fit: Fit, dtype) -> list:
        """What `bring` needs besides, in VMEM."""
        del fit, dtype
        return []

    def bring(self, fit: Fit, operands, scratch, values_t, part) -> None:
        """Lays a load's values out as [size, resident], the first rows of values_t."""
        del scratch, part
        tile.transpose(fit, operands[1], values_t)

    def keys(self, operands, scratch):
        """The reference of [resident, size] that holds a load's keys once it was brought."""
        del scratch
        return operands[0]


def forward(
    q: jax.Array, source: Merged, plan: Schedule, fit: Fit, *, scale: float, vmem: int,
    name: str = 'flash_forward', interpret=False,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """The kernel on padded operands.

    Args:
      q: (b, fit.t, n * h), h = source.size. Heads of a group are neighbours.
      source: keys and values, of fit.s positions.
      plan: `flash_mask.schedule` of the mask and `fit`.
      name: that the compiler knows the kernel by.

    Returns:
      (out like q, log-sum-exp in base 2 (b, k, g, fit.t) float32, and which tiles took the
      bound for the maximum (b, k, tiles) bool).
    """
    b, kv_heads, h = len(q), source.heads, source.size
    longest = source.longest()
    shared = len(plan.visits) == 1

    def row(x):
        return 0 if shared else lax.div(x, kv_heads)

    def load(x, i, m, loads, *_):
        return loads[(row(x) * fit.tiles + i) * fit.loads + m]

    def queries(x, i, m, *_):
        return lax.div(x, kv_heads), i, lax.rem(x, kv_heads)

    def by_query(x, i, m, *_):
        return row(x), 0, i

    scratch = _scratch(fit, h, q.dtype), source.scratch(fit, q.dtype)
    out = pl.pallas_call(
        functools.partial(
            _kernel, fit=fit, source=source, own_scratch=len(scratch[0]), scale=scale
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2 + len(source.scalars),
            grid=(b * kv_heads, fit.tiles, fit.loads),
            in_specs=[
                pl.BlockSpec(
                    (None, None, None, 1, fit.visits + 3), lambda x, i, m, *_: (row(x), i, m, 0, 0),
                    memory_space=pltpu.SMEM,
                ),
                pl.BlockSpec((None, fit.positions, fit.group * h), queries),
                *source.specs(fit, load),
                pl.BlockSpec((None, 1, fit.positions), by_query),
                pl.BlockSpec((None, 1, fit.positions), by_query),
                pl.BlockSpec((None, 1, fit.resident), lambda x, i, m, *_: (row(x), 0, m)),
            ],
            out_specs=[
                pl.BlockSpec((None, fit.positions, fit.group * h), queries),
                pl.BlockSpec((None, fit.group, fit.positions), lambda x, i, m, *_: (x, 0, i)),
                pl.BlockSpec((None, None, tile.SUBLANES, 128), lambda x, i, m, *_: (x, i, 0, 0)),
            ],
            scratch_shapes=[*scratch[0], *scratch[1]],
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
        name=name,
    )(
        plan.load.reshape(-1), longest.reshape(-1), *source.scalars, plan.visits, q,
        *source.operands, plan.q_segments, plan.limit, plan.kv_segments,
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


def _kernel(*refs, fit: Fit, source: Merged, own_scratch: int, scale: float):
    (_, longest), refs = refs[:2], refs[2 + len(source.scalars) :]
    (visits, q), refs = refs[:2], refs[2:]
    operands, refs = refs[: len(source.operands)], refs[len(source.operands) :]
    (q_segments, limit, kv_segments, out, log_sum, known), refs = refs[:6], refs[6:]
    queries, values_t, acc, top, scores, weights, largest, columns, keys, road = refs[:own_scratch]
    more, h = refs[own_scratch:], source.size
    head, number, part = (pl.program_id(axis) for axis in range(3))
    sights = tile.Sights(fit, q_segments, limit, kv_segments, columns, keys)
    heads = tile.heads(fit, h)
    scale *= tile.LOG2E

    @pl.when((number == 0) | (fit.loads > 1))
    def _():
        values_t[h:] = jnp.ones((ONES, fit.resident), values_t.dtype)
        source.bring(fit, operands, more, values_t, part)

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
        fit, sights, part * fit.resident, scale, source.keys(operands, more), queries, values_t,
        acc, top, scores, weights, largest,
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
