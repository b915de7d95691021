"""Rows of an embedding table: every device looks up those of its own positions.

Left to the compiler, a table divided over its width makes every device look up the positions of
all, in a few columns each. Here it gathers the table and reduces the gradient, once each.
"""

import functools

import jax
import jax.numpy as jnp

from mossjax.nn import collect, shard
from mossjax.ops.quant import Int8, take_rows


def lookup(
    table: jax.Array | Int8, ids: jax.Array, axes: tuple[str, str] = ('vocab', 'embed')
) -> jax.Array:
    """Rows of a (v, d) table under the ambient mesh; `axes` are its logical axes.

    Args:
      ids: (b, t) int32; those outside are clipped.

    Returns:
      (b, t, d). The gradients of a row that is looked up twice are summed in float32.
    """
    if shard.mesh() is None or isinstance(table, Int8):
        return take_rows(table, ids)
    rows = shard.places(ids.shape, ('batch', 'time'))
    kept = shard.places(table.shape, axes)
    return _lookup((rows, kept, table.shape[0]), table, ids)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lookup(static, table, ids):
    rows, kept, _ = static
    by_row, by_table = shard.spec(rows), shard.spec(kept)

    def local(table, ids):
        return take_rows(collect.gather(table, kept), ids)

    return shard.per_device(local, (by_table, by_row), by_row)(table, ids)


def _forward(static, table, ids):
    return _lookup(static, table, ids), ids


def _backward(static, ids, d_rows):
    rows, kept, vocab = static
    by_row, by_table = shard.spec(rows), shard.spec(kept)

    def local(ids, d_rows):
        d = d_rows.shape[-1]
        whole = jnp.zeros((vocab, d), jnp.float32)
        whole = whole.at[jnp.clip(ids, 0, vocab - 1).reshape(-1)].add(
            d_rows.reshape(-1, d).astype(jnp.float32)
        )
        return collect.reduce(whole, collect.names_of(rows), kept).astype(d_rows.dtype)

    return shard.per_device(local, (by_row, by_row), by_table)(ids, d_rows), None


_lookup.defvjp(_forward, _backward)
