"""The cache read by our kernels for TPUs, on a mesh once per device: its own heads of all lanes."""

import functools

import jax
import jax.numpy as jnp

from mossjax.nn import shard
from mossjax.ops import flash_decode, flash_prefill
from mossjax.ops.cached_attention import Attend, Pair, cached_attention, lanes

HEADS = None, 'time', 'heads', None  # logical axes of queries
KV_HEADS = None, 'time', 'kv_heads', None  # of new keys and values
CACHE = None, None, 'kv_heads', None, None


def in_kernel(
    pair: Pair, lengths: jax.Array, first: jax.Array | int, interpret=False
) -> tuple[jax.Array, Attend]:
    """Reads the blocks that each lane fills, with kernels for TPUs; the layers are their numbers.

    One for the few queries of a step, one for the many of a piece of a prompt. Heads of other sizes
    than theirs are left to `ops.cached_attention`. Arguments: see `ops.cached_attention.Recall`.
    """

    def attend(q, new, layer):
        kernel = next((x for x in (flash_decode, flash_prefill) if x.takes(q, pair[0])), None)
        if kernel is None:
            own = jax.tree.map(lambda x: lanes(x[layer], first, len(lengths)), pair)
            return cached_attention(q, new, own, lengths)
        axes = HEADS, (KV_HEADS,) * 2, jax.tree.map(lambda _: CACHE, pair), (None,), (), ()
        local = functools.partial(kernel.attend, interpret=interpret)
        run = shard.sharded_op(local, axes, HEADS)
        return run(q, new, pair, lengths, layer, jnp.asarray(first))

    return jnp.arange(pair[0].shape[0]), attend


interpreted = functools.partial(in_kernel, interpret=True)
