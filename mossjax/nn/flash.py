"""Our attention kernels inside a network: once per device, on its own rows and heads."""

import functools

import jax

from mossjax.nn.shard import sharded_op
from mossjax.ops import flash as ops
from mossjax.ops import flash_mask
from mossjax.ops.attention import Mask


def flash(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, *, bias=None, scale=None,
    kernel=ops.attend,
) -> jax.Array:
    """`ops.flash.flash` under the ambient mesh; shapes as in `ops.attention.attention`."""
    ops.check(q, k, v, bias)
    seen = flash_mask.sight(mask, q.shape[1], k.shape[1])
    rows = (None if len(seen.limit) == 1 else 'batch', 'time')
    heads, kv_heads = (('batch', 'time', name, 'head_dim') for name in ('heads', 'kv_heads'))

    def local(q, k, v, seen):
        return kernel(q, k, v, seen, scale=scale)[0]

    run = sharded_op(local, (heads, kv_heads, kv_heads, flash_mask.Sight(*[rows] * 3)), heads)
    return run(q, k, v, seen)


interpreted = functools.partial(flash, kernel=functools.partial(ops.attend, interpret=True))
