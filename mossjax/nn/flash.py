"""Fast attention inside a network: on a TPU our kernels, once per device, on its own rows and
heads; on a GPU cuDNN's; elsewhere the reference."""

import functools

import jax

from mossjax.errors import InputError
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
    """`ops.flash.flash` under the ambient mesh; shapes as in `ops.attention.attention`.

    Raises:
      InputError: what `ops.flash.check` refuses, or heads that the mesh does not divide evenly.
    """
    ops.check(q, k, v, bias)
    _check_heads(q.shape[2], k.shape[2])
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


def _check_heads(heads: int, kv_heads: int) -> None:
    """A head lies whole on one device, beside the keys and values it reads."""
    for count, name, what in (
        (kv_heads, 'kv_heads', 'key-value heads'), (heads, 'heads', 'query heads'),
    ):  # fmt: skip
        if count % (parts := shard.parts(name)):
            raise InputError(
                f'attention has {count} {what}, which {parts} devices (the tensor axis of the '
                f'mesh) cannot share evenly; set config.mesh.tensor to a divisor of {kv_heads}'
            )


interpreted = functools.partial(kernels, kernel=functools.partial(ops.attend, interpret=True))
