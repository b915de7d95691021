"""RMS norm and rotation of each head in one pass over memory: a Pallas TPU kernel each way.

Left to the compiler the two become four passes with time along the lanes, and the attention kernel,
which reads heads beside heads, needs the result copied once more. Here heads stay where the
projection wrote them: (b, t, n * h).
"""

import functools
import math

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

LANES = 128
_TILES = (256, 128, 64, 32, 16)  # positions at a time
_HEADS = 8  # at a time
_SUBLANES = 8
_PARALLEL = pltpu.CompilerParams(dimension_semantics=('parallel', 'parallel', 'arbitrary'))


def takes(x: jax.Array) -> bool:
    """Can the kernels read (b, t, n, h)? Heads fill the lanes, positions whole registers."""
    return x.shape[3] == LANES and x.shape[1] % _TILES[-1] == 0


def block(x: jax.Array) -> tuple[int, int]:
    """Positions and heads that a step of the kernels has of (b, t, n, h)."""
    return next(n for n in _TILES if x.shape[1] % n == 0), math.gcd(x.shape[2], _HEADS)


def norm_rope(
    x: jax.Array, scale: jax.Array, cos: jax.Array, sin: jax.Array, *, eps: float, interpret=False
) -> jax.Array:
    """`ops.rope.rotate` of `ops.norms.rms_norm`, on one device.

    All in float32, rounded to x.dtype once.

    Args:
      x: (b, t, n, h) that `takes` does. scale: (h,). cos, sin: (b, t, 1, h / 2), of x's dtype.
      interpret: True or `pltpu.InterpretParams` to run without a TPU.
    """
    b, t, n, h = x.shape
    cos = jnp.concatenate([cos, cos], -1).reshape(-1, t, h)
    sin = jnp.concatenate([-sin, sin], -1).reshape(-1, t, h)
    scale = scale.astype(jnp.float32).reshape(1, h)
    static = eps, block(x), interpret
    return _norm_rope(static, x.reshape(b, t, n * h), scale, cos, sin).reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _norm_rope(static, x, scale, cos, sin):
    eps, sizes, interpret = static
    grid, (some, one, table, _) = _specs(x, cos, sizes)
    return pl.pallas_call(
        functools.partial(_forward_kernel, eps=eps),
        grid=grid,
        in_specs=[some, one, table, table],
        out_specs=some,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        compiler_params=_PARALLEL,
        interpret=interpret,
        name='norm_rope_forward',
    )(x, scale, cos, sin)


def _keep(static, x, scale, cos, sin):
    return _norm_rope(static, x, scale, cos, sin), (x, scale, cos, sin)


def _back(static, kept, gradient):
    eps, sizes, interpret = static
    x, scale, cos, sin = kept
    grid, (some, one, table, sums) = _specs(x, cos, sizes)
    d_x, d_scale = pl.pallas_call(
        functools.partial(_backward_kernel, eps=eps),
        grid=grid,
        in_specs=[some, some, one, table, table],
        out_specs=[some, sums],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct((*grid, _SUBLANES, LANES), jnp.float32),
        ],
        compiler_params=_PARALLEL,
        interpret=interpret,
        name='norm_rope_backward',
    )(x, gradient, scale, cos, sin)
    d_scale = d_scale.sum((0, 1, 2, 3)).reshape(1, LANES)
    # Angles follow from positions, which are integers: nothing asks for their gradients.
    return d_x, d_scale, jnp.zeros_like(cos), jnp.zeros_like(sin)


_norm_rope.defvjp(_keep, _back)


def _specs(x, table, sizes):
    """(grid, block specs of activations, the scale, a table, and sums for its gradient)."""
    (b, t, width), (tile, heads) = x.shape, sizes
    shared = len(table) == 1
    return (b, t // tile, width // LANES // heads), (
        pl.BlockSpec((None, tile, heads * LANES), lambda b, i, j: (b, i, j)),
        pl.BlockSpec((1, LANES), lambda b, i, j: (0, 0)),
        pl.BlockSpec((None, tile, LANES), lambda b, i, j: (0 if shared else b, i, 0)),
        pl.BlockSpec((None, None, None, _SUBLANES, LANES), lambda b, i, j: (b, i, j, 0, 0)),
    )


def _heads(ref):
    return [slice(i, i + LANES) for i in range(0, ref.shape[1], LANES)]


def _mean(x):
    return jnp.mean(x, axis=-1, keepdims=True)


def _forward_kernel(x_ref, scale_ref, cos_ref, sin_ref, out_ref, *, eps):
    scale, cos, sin = _float32(scale_ref, cos_ref, sin_ref)
    for head in _heads(x_ref):
        x = x_ref[:, head].astype(jnp.float32)
        y = x * jax.lax.rsqrt(_mean(x * x) + eps) * scale
        out_ref[:, head] = (y * cos + _halves_swapped(y) * sin).astype(out_ref.dtype)


def _backward_kernel(x_ref, d_out_ref, scale_ref, cos_ref, sin_ref, d_x_ref, d_scale_ref, *, eps):
    scale, cos, sin = _float32(scale_ref, cos_ref, sin_ref)
    d_scale = jnp.zeros(d_scale_ref.shape, jnp.float32)
    for head in _heads(x_ref):
        x, d_out = _float32(x_ref.at[:, head], d_out_ref.at[:, head])
        inverse = jax.lax.rsqrt(_mean(x * x) + eps)
        y = x * inverse
        d_y = d_out * cos + _halves_swapped(d_out * sin)
        d_scale += (d_y * y).reshape(-1, *d_scale.shape).sum(0)
        d_y *= scale
        d_x_ref[:, head] = (inverse * (d_y - y * _mean(d_y * y))).astype(d_x_ref.dtype)
    d_scale_ref[...] = d_scale


def _float32(*refs):
    return [ref[...].astype(jnp.float32) for ref in refs]


def _halves_swapped(x):
    return pltpu.roll(x, LANES // 2, 1)
