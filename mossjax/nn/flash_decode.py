"""The cache read by the decoding kernel, on a mesh once per device: its own heads of all lanes."""

import functools

import jax
import jax.numpy as jnp

from mossjax.nn import shard
from mossjax.ops import flash_decode as ops
from mossjax.ops.cached_attention import Attend, Pair, cached_attention, lanes
from mossjax.ops.quant import Int8

HEADS = None, 'time', 'heads', None  # logical axes of queries
KV_HEADS = None, 'time', 'kv_heads', None  # of new keys and values
CACHE = None, None, 'kv_heads', None, None


def in_kernel(
    pair: Pair, lengths: jax.Array, first: jax.Array | int, kernel=ops.attend
) -> tuple[jax.Array, Attend]:
    """Reads the blocks that each lane fills, with a kernel for TPUs; the layers are their numbers.

    Many queries at once (pieces of a prompt), int8 rows and heads of other sizes than the kernel's
    are left to `ops.cached_attention`. Arguments: see `ops.cached_attention.Recall`.
    """

    def attend(q, new, layer):
        if isinstance(pair[0], Int8) or not ops.takes(q, pair[0]):
            own = jax.tree.map(lambda x: lanes(x[layer], first, len(lengths)), pair)
            return cached_attention(q, new, own, lengths)
        axes = HEADS, (KV_HEADS,) * 2, (CACHE,) * 2, (None,), (), ()
        run = shard.sharded_op(kernel, axes, HEADS)
        return run(q, new, pair, lengths, layer, jnp.asarray(first))

    return jnp.arange(pair[0].shape[0]), attend


interpreted = functools.partial(in_kernel, kernel=functools.partial(ops.attend, interpret=True))
