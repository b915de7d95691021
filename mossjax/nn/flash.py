"""Fast attention inside a network: on a TPU our kernels, once per device, on its own rows and
heads; on a GPU cuDNN's; elsewhere the reference."""

import functools

import jax

from mossjax.nn import shard
from mossjax.ops import flash as ops
from mossjax.ops import flash_mask
from mossjax.ops.attention import Mask
from mossjax.ops.fused import fused


def flash(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, *, bias=None, scale=None):
    """`ops.attention.attention` by what is fastest where it will run: on the mesh around it, or
    else on the default device. Shapes as there.

    Raises:
      InputError: on a TPU, what `ops.flash.check` refuses.
    """
    attend = kernels if shard.platform() == 'tpu' else fused
    return attend(q, k, v, mask, bias=bias, scale=scale)


def kernels(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, *, bias=None, scale=None,
    kernel=ops.attend,
) -> jax.Array:
    """`ops.flash.flash` under the ambient mesh; shapes as in `ops.attention.attention`."""
    ops.check(q, k, v, bias)
    seen = flash_mask.sight(mask, q.shape[1], k.shape[1])
    rows = (None if len(seen.limit) == 1 else 'batch', 'time')
    # Heads cross into the kernel's devices side by side, as matrices write and read them.
    (b, t, _, h), s = q.shape, k.shape[1]
    heads, kv_heads = (('batch', 'time', name) for name in ('heads', 'kv_heads'))

    def local(q, k, v, seen):
        q, k, v = (x.reshape(*x.shape[:2], -1, h) for x in (q, k, v))
        return kernel(q, k, v, seen, scale=scale)[0].reshape(*q.shape[:2], -1)

    run = shard.sharded_op(local, (heads, kv_heads, kv_heads, flash_mask.Sight(*[rows] * 3)), heads)
    out = run(q.reshape(b, t, -1), k.reshape(b, s, -1), v.reshape(b, s, -1), seen)
    return out.reshape(q.shape)


interpreted = functools.partial(kernels, kernel=functools.partial(ops.attend, interpret=True))
