"""Rows of an embedding table: every device looks up those of its own positions.

Left to the compiler, a table divided over its width makes every device look up the positions of
all, in a few columns each. Here it gathers the table and reduces the gradient, once each. A few
positions that the devices of a table have in common, as when they speak, are cheaper to ask of the
device that holds their row than the table is to move.
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
        if _in_common(rows, kept) and ids.size < table.shape[0]:
            return _asked(table, ids, static)
        return take_rows(collect.gather(table, kept), ids)

    return shard.per_device(local, (by_table, by_row), by_row)(table, ids)


def _in_common(rows: collect.Places, kept: collect.Places) -> bool:
    """Does no axis of the mesh divide both the positions and the table, but one the table?"""
    sizes = shard.mesh().shape
    over, of_table = (
        {name for name in collect.names_of(places) if sizes[name] > 1} for places in (rows, kept)
    )
    return bool(of_table) and not over & of_table


def _asked(table, ids, static):
    """Each position's row from the device that holds it, zeros from the others, added up."""
    _, kept, vocab = static
    sizes = shard.mesh().shape
    over, width = (tuple(name for name in names if sizes[name] > 1) for names in kept)
    own = table.shape[0]
    first = jax.lax.axis_index(over) * own if over else 0
    at = jnp.clip(ids, 0, vocab - 1) - first
    held = (at >= 0) & (at < own)
    found = jnp.where(held[..., None], take_rows(table, jnp.clip(at, 0, own - 1)), 0)
    found = jax.lax.psum(found, over) if over else found
    return collect.gather(found, ((), (), width))


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
