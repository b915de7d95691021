"""The chunked cross-entropy inside a network: every device loops over positions of its own.

One gather of the head before the loop and one reduction of its gradient behind it, however many
chunks there are.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

from mossjax.nn import collect, shard
from mossjax.ops import losses as ops
from mossjax.ops.losses import CrossEntropy


def cross_entropy(
    hidden: jax.Array, head: jax.Array, labels: jax.Array, weights: jax.Array | None = None, *,
    z_weight: float = 0.0, chunk: int = 2048,
) -> CrossEntropy:
    """`ops.losses.cross_entropy` under the ambient mesh.

    Args:
      hidden: (b, t, d). head: (d, v), its axes 'embed' and 'vocab'. labels, weights: (b, t).
      chunk: positions of one device whose logits exist at a time.
    """
    return ops.cross_entropy(
        hidden, head, labels, weights, z_weight=z_weight, chunk=chunk, run=_per_device
    )


def _per_device(
    hidden, head, labels, weights, z_weight, chunk, *, gradients: bool
) -> tuple:
    """`ops.losses.local` on a mesh. A row's positions are divided over what divides its layers:
    no device repeats the work of another."""
    if shard.mesh() is None:
        return ops.local(hidden, head, labels, weights, z_weight, chunk, gradients=gradients)
    t = labels.shape[1]
    padding = -t % shard.parts('positions')
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    labels = jnp.pad(labels, ((0, 0), (0, padding)), constant_values=ops.IGNORE)
    weights = jnp.pad(weights, ((0, 0), (0, padding)))

    rows = shard.places(labels.shape, ('batch', 'positions'))
    kept = shard.places(head.shape, ('embed', 'vocab'))
    by_row, by_head, everywhere = shard.spec(rows), shard.spec(kept), shard.spec(())
    static = {'z_weight': z_weight, 'chunk': chunk, 'gradients': gradients}
    run = shard.per_device(
        functools.partial(_local, static=static, rows=rows, kept=kept),
        (by_row, by_head, by_row, by_row),
        (
            CrossEntropy(*[everywhere] * 5, each=by_row),
            *((by_row, by_head) if gradients else ()),
        ),
    )
    sums, *slopes = run(hidden, head, labels, weights)
    if gradients:
        slopes[0] = slopes[0][:, :t]
    return sums._replace(each=sums.each[:, :t]), *slopes


def _local(hidden, head, labels, weights, *, static, rows, kept):
    whole = collect.gather(head.astype(hidden.dtype), kept)
    sums, *slopes = ops.partial_sums(hidden, whole, labels, weights, **static)
    everyone = collect.names_of(rows)
    if slopes:
        slopes[1] = collect.reduce(slopes[1], everyone, kept).astype(head.dtype)
    *totals, each = sums
    return CrossEntropy(*lax.psum(totals, everyone), each), *slopes
