"""Splash attention inside a network: the kernel once per device, on its own rows and heads."""

import dataclasses
import functools

import jax

from mossjax.nn.shard import sharded_op
from mossjax.ops import splash as ops
from mossjax.ops.attention import Mask


def splash(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, *, bias=None, scale=None,
    kernel=ops.splash,
) -> jax.Array:
    """`ops.splash.splash` under the ambient mesh; shapes as in `ops.attention.attention`."""
    ops.check(q, k, mask, bias)
    causal = dataclasses.replace(mask, q_segments=None, kv_segments=None)

    def local(q, k, v, q_segments, kv_segments):
        own = dataclasses.replace(causal, q_segments=q_segments, kv_segments=kv_segments)
        return kernel(q, k, v, own, scale=scale)

    heads, kv_heads = (('batch', 'time', name, 'head_dim') for name in ('heads', 'kv_heads'))
    rows = ('batch', 'time')
    segments = [None if x is None else rows for x in (mask.q_segments, mask.kv_segments)]
    run = sharded_op(local, (heads, kv_heads, kv_heads, *segments), heads)
    return run(q, k, v, mask.q_segments, mask.kv_segments)


interpreted = functools.partial(splash, kernel=functools.partial(ops.splash, interpret=True))
