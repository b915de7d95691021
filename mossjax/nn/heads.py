"""Queries and keys made ready for attention: normed by head and rotated."""

import functools

import jax

from mossjax.nn import shard
from mossjax.nn.linear import RMSNorm
from mossjax.ops import norm_rope as ops
from mossjax.ops import rope

Rotation = tuple[jax.Array, jax.Array]  # cos, sin as made by `ops.rope.rotation`


def norm_rope(x: jax.Array, norm: RMSNorm, rotation: Rotation) -> jax.Array:
    """norm and `ops.rope.rotate` of x (b, t, n, h); on a mesh of TPUs in one kernel, where it
    takes x."""
    if shard.mesh() is not None and shard.platform() == 'tpu' and ops.takes(x):
        return kernels(x, norm.scale[...], rotation, eps=norm.eps)
    return rope.rotate(norm(x), *rotation)


def kernels(
    x: jax.Array, scale: jax.Array, rotation: Rotation, *, eps: float, kernel=ops.norm_rope
) -> jax.Array:
    """`ops.norm_rope.norm_rope` under the ambient mesh, on each device's rows and heads."""
    b, t, n, h = x.shape
    # Heads cross into the kernel's devices side by side, as matrices write and read them.
    heads = 'batch', 'time', 'heads' if n % shard.parts('heads') == 0 else None
    tables = None if len(rotation[0]) == 1 else 'batch', 'time', None, None

    def local(x, scale, cos, sin):
        x = x.reshape(*x.shape[:2], -1, h)
        return kernel(x, scale, cos, sin, eps=eps).reshape(*x.shape[:2], -1)

    run = shard.sharded_op(local, (heads, (None,), tables, tables), heads)
    return run(x.reshape(b, t, -1), scale, *rotation).reshape(x.shape)


interpreted = functools.partial(kernels, kernel=functools.partial(ops.norm_rope, interpret=True))
