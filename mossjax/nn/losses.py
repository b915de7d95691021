"""The chunked cross-entropy inside a network: every device loops over positions of its own.

One gather of the head before the loop and one reduction of its gradient behind it, however many
chunks there are.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

from mossjax.nn import shard
from mossjax.ops import losses as ops
from mossjax.ops.losses import CrossEntropy


def cross_entropy(
    hidden: jax.Array, head: jax.Array, labels: jax.Array, weights: jax.Array | None = None, *,
    chunk: int = 2048,
) -> CrossEntropy:
    """`ops.losses.cross_entropy` under the ambient mesh.

    Args:
      hidden: (b, t, d). head: (d, v), its axes 'embed' and 'vocab'. labels, weights: (b, t).
      chunk: positions of one device whose logits exist at a time.
    """
    return ops.cross_entropy(hidden, head, labels, weights, chunk=chunk, run=_per_device)


def _per_device(hidden, head, labels, weights, chunk, *, gradients: bool) -> tuple:
    """`ops.losses.local` on a mesh. A row's positions are divided over what divides its layers:
    no device repeats the work of another."""
    if shard.mesh() is None:
        return ops.local(hidden, head, labels, weights, chunk, gradients=gradients)
    t = labels.shape[1]
    padding = -t % shard.parts('positions')
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    labels = jnp.pad(labels, ((0, 0), (0, padding)), constant_values=ops.IGNORE)
    weights = jnp.pad(weights, ((0, 0), (0, padding)))

    rows = shard.places(labels.shape, ('batch', 'positions'))
    kept = shard.places(head.shape, ('embed', 'vocab'))
    by_row, by_head, everywhere = shard.spec(rows), shard.spec(kept), shard.spec(())
    run = shard.per_device(
        functools.partial(_local, chunk=chunk, gradients=gradients, rows=rows, kept=kept),
        (by_row, by_head, by_row, by_row),
        (
            CrossEntropy(everywhere, everywhere, everywhere, by_row),
            *((by_row, by_head) if gradients else ()),
        ),
    )
    sums, *slopes = run(hidden, head, labels, weights)
    if gradients:
        slopes[0] = slopes[0][:, :t]
    return sums._replace(each=sums.each[:, :t]), *slopes


def _local(hidden, head, labels, weights, *, chunk, gradients, rows, kept):
    whole = head.astype(hidden.dtype)
    for axis, names in enumerate(kept):
        if names:
            whole = lax.all_gather(whole, names, axis=axis, tiled=True)
    sums, *slopes = ops.partial_sums(hidden, whole, labels, weights, chunk, gradients=gradients)
    everyone = tuple(name for names in rows for name in names)
    loss, count, correct = lax.psum((sums.loss, sums.count, sums.correct), everyone)
    if gradients:
        slopes[1] = _reduced(slopes[1], everyone, kept).astype(head.dtype)
    return CrossEntropy(loss, count, correct, sums.each), *slopes


def _reduced(d_head, everyone: tuple[str, ...], kept) -> jax.Array:
    """The sum over devices of different rows, of which each keeps its part."""
    for axis, names in enumerate(kept):
        if names:
            d_head = lax.psum_scatter(d_head, names, scatter_dimension=axis, tiled=True)
    others = tuple(name for name in everyone if name not in kept[0] + kept[1])
    return lax.psum(d_head, others) if others else d_head
