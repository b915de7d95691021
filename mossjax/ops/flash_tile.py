"""What the forward and the backward attention kernel share: products, masks, the walk of a tile."""

from collections.abc import Callable, Iterator
import itertools

import jax
from jax import lax
from jax.experimental import pallas as pl
import jax.numpy as jnp

from mossjax.ops.flash_blocks import LANES, Fit

LOG2E = 1.4426950408889634
# Stands for minus infinity in scores, where it meets itself: no NaN from a difference of the two.
HIDDEN = -1e30
# A running maximum starts above it, so that hidden scores weigh nothing even if no other is seen.
UNSEEN = -1e29
SUBLANES = 8

ROWS_BY_ROWS = (((1,), (1,)), ((), ()))  # a b^T
COLUMNS_BY_COLUMNS = (((0,), (0,)), ((), ()))  # a^T b
PLAIN = (((1,), (0,)), ((), ()))  # a b

Pieces = Iterator[None]


def dot(a: jax.Array, b: jax.Array, dims=PLAIN) -> jax.Array:
    """float32 product; of float32 operands an exact one."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def by_sublane(x: jax.Array) -> jax.Array:
    """[r, c] -> [r / 8, 8, c]: registers apart, so that sums over them are plain additions."""
    return x.reshape(-1, SUBLANES, x.shape[-1])


def flat(x: jax.Array) -> jax.Array:
    """The way back from `by_sublane`."""
    return x.reshape(-1, x.shape[-1])


def everywhere(row: jax.Array) -> jax.Array:
    """[1, c] -> [8, c]."""
    return jnp.broadcast_to(row, (SUBLANES, row.shape[-1]))


def heads(fit: Fit, h: int) -> list[tuple[int, slice, slice]]:
    """(head, its lanes in a block of [positions, heads * h], its columns in a tile) of a group."""
    return [
        (n, slice(n * h, (n + 1) * h), slice(n * fit.positions, (n + 1) * fit.positions))
        for n in range(fit.group)
    ]


def strip_columns(fit: Fit, strip: int) -> slice:
    return slice(strip * fit.strip, (strip + 1) * fit.strip)


def transpose(fit: Fit, rows, columns) -> None:
    """Copies [resident, h] into the first h rows of [h or more, resident]."""
    h = rows.shape[1]

    def block(number, _):
        at = pl.ds(pl.multiple_of(number * fit.keys, fit.keys), fit.keys)
        columns[:h, at] = rows[at].T

    lax.fori_loop(0, fit.visits, block, None)


class Sights:
    """The mask of a tile against the block of keys it visits.

    Args:
      q_segments, limit: references of [1, positions]. kv_segments: of [1, resident].
      columns: scratch of [2, 8, columns] int32, filled by `start`.
      keys: scratch of [keys, 128] int32: segments of the block's keys, down the sublanes.
    """

    def __init__(self, fit: Fit, q_segments, limit, kv_segments, columns, keys):
        self.fit = fit
        self.queries = q_segments, limit
        self.kv_segments = kv_segments
        self.columns = columns
        self.keys = keys

    def start(self):
        """Lays the queries' segments and limits out by columns."""
        for kind, rows in enumerate(self.queries):
            self.columns[kind] = everywhere(jnp.tile(rows[...], (1, self.fit.group)))

    def hide(self, scores: jax.Array, strip: int, begin, row: int, first_key) -> jax.Array:
        """The scores of keys begin + row ... with those that are not seen made `HIDDEN`.

        Args:
          scores: [rows / 8, 8, strip].
          begin: first key of the block in VMEM. first_key: its index on the key axis.
          row: where in the block the scores start; strip 0 comes before the others.
        """
        rows, width = scores.shape[0] * SUBLANES, scores.shape[2]
        here = slice(row, row + rows)
        if strip == 0:
            segments = self.kv_segments[:, pl.ds(pl.multiple_of(begin + row, LANES), rows)]
            self.keys[here] = jnp.broadcast_to(segments, (LANES, rows)).T
        segments, limit = (
            self.columns[kind, :, strip_columns(self.fit, strip)] for kind in range(2)
        )
        key = first_key + row + lax.broadcasted_iota(jnp.int32, (rows, LANES), 0)
        over = (1, width // LANES)
        seen = by_sublane(jnp.tile(self.keys[here], over)) == segments
        seen &= by_sublane(jnp.tile(key, over)) < limit
        return jnp.where(seen, scores, HIDDEN)


def walk(
    fit: Fit, visits, produce: Callable[..., Pieces], consume: Callable[..., Pieces]
) -> None:
    """Visits the blocks of one tile; each strip is consumed while the next one is produced.

    The two halves of the work on a strip use different units (matrix products and elementwise
    chains), and the compiler only overlaps what stands side by side in one stretch of code without
    jumps. The strip made last belongs to the next visit; after the last visit it is of no use.
    Blocks that the mask cuts come first: what follows a whole one is whole.

    Args:
      visits: reference of [1, visits + 3], see `flash_mask.Schedule`.
      produce, consume: (strip, begin, masked): generators that do a piece of the work between two
        yields. begin is the block's first key in VMEM, masked whether the mask cuts that block.
    """
    cut, visited = visits[0, 0], visits[0, 1]

    def begin(visit):
        return pl.multiple_of(visits[0, 2 + visit] * fit.keys, fit.keys)

    def visit(number, masked):
        here, after = begin(number), begin(number + 1)
        for strip in range(fit.strips):
            last = strip + 1 == fit.strips
            ahead = produce(0, after, masked) if last else produce(strip + 1, here, masked)
            _side_by_side(ahead, consume(strip, here, masked))

    @pl.when(visited > 0)
    def _():
        _side_by_side(produce(0, begin(0), True))
        lax.fori_loop(0, cut, lambda number, _: visit(number, masked=True), None)
        lax.fori_loop(cut, visited, lambda number, _: visit(number, masked=False), None)


def _side_by_side(*work: Pieces) -> None:
    for _ in itertools.zip_longest(*work):
        pass
