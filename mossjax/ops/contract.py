"""The one place where an activation meets a weight: float, int8, or whatever stands for a weight.

A network says which axes are summed, as an einsum of x and w; how the weight is held (a float
array of any dtype, `ops.quant.Int8`, `nn.lora.Adapted`) is that object's own business.
"""

import math
from typing import Protocol

import jax
import jax.numpy as jnp

# What a TPU's matrix unit takes at once. Fewer rows become a loop over vectors there, which reads
# the same weights at a quarter of the speed.
TPU_ROWS = 8
# Up to so many rows a product is as fast as its weight is read. The compiler would put two of them
# into one fusion (a gated MLP's last two), which reads both at five sixths of the speed.
FEW_ROWS = 32
# From so many on, summed axes are made one before, and the others after. Tiles of a TPU's memory
# span the last two axes: products of more axes come out in an order that no kernel reads.
MANY_ROWS = 128


class Weight(Protocol):
    """What may stand for a float array in `contract`."""

    def contract(self, x: jax.Array, spec: str) -> jax.Array:
        """einsum(spec, x, the weight), in x.dtype."""
        ...


def contract(x: jax.Array, w: jax.Array | Weight, spec: str) -> jax.Array:
    """einsum(spec, x, w), in x.dtype.

    Args:
      x: activations, floating; the axes that are summed stand last.
      w: the weight in any form; the axes that are summed stand first.
      spec: such as 'btd,df->btf' or '...d,de->...e'.
    """
    if hasattr(w, 'contract'):
        return w.contract(x, spec)
    return product(x, w.astype(x.dtype), spec)


def product(x: jax.Array, w: jax.Array, spec: str, dtype=None) -> jax.Array:
    """The einsum of two arrays; where it is compiled for a TPU, few rows of x are padded to 8 and
    stay a product of their own.

    Args:
      dtype: of the result and of its accumulation, x.dtype by default.
    """
    left, right = spec.split('->')[0].split(',')
    summed = len([letter for letter in left if letter in right])
    shape = x.shape[: x.ndim - summed]
    rows = math.prod(shape)

    def plain(x, w):
        if rows >= MANY_ROWS:
            flat = w.reshape(math.prod(w.shape[:summed]), -1)
            y = jnp.matmul(x.reshape(*shape, -1), flat, preferred_element_type=dtype)
            return y.reshape(*shape, *w.shape[summed:])
        return jnp.einsum(spec, x, w, preferred_element_type=dtype)

    def alone(x, w):
        flat = x.reshape(rows, *x.shape[x.ndim - summed :])
        flat = jnp.pad(flat, [(0, max(0, TPU_ROWS - rows))] + [(0, 0)] * summed)
        y = jnp.tensordot(flat, w, summed, preferred_element_type=dtype)
        # Or the cut moves into the matmul, and that back to vectors.
        y = jax.lax.optimization_barrier(y)
        return y[:rows].reshape(*shape, *y.shape[1:])

    def few(x, w):
        # An einsum sums in an order of its own, for which a CPU would transpose the weight.
        return jnp.tensordot(x, w, summed, preferred_element_type=dtype)

    if not 0 < rows <= FEW_ROWS:
        return plain(x, w)
    elsewhere = few if rows < TPU_ROWS else plain
    return jax.lax.platform_dependent(x, w, tpu=alone, default=elsewhere)
