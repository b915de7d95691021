"""int8 weights: symmetric, one scale for every output channel.

`Int8` stands where a weight array stood: networks multiply through `ops.contract` and look rows up
through `take_rows`, so they run on either. The integers go into the matmul as they are and the
scale, which is one number a column of the result, is applied to the result.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.ops.contract import TPU_ROWS, product

LARGEST = 127  # -128 is not used: the range is symmetric


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=['values', 'scale'], meta_fields=['dtype']
)
@dataclasses.dataclass(frozen=True, eq=False)
class Int8:
    """values * scale.

    Attributes:
      values: int8, the shape of the weight.
      scale: float32, the same with 1 on the axes that are summed over.
      dtype: numpy dtype name of the weight it stands for (what activations start as).
    """

    values: jax.Array
    scale: jax.Array
    dtype: str = 'bfloat16'

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def ndim(self) -> int:
        return self.values.ndim

    def __getitem__(self, index) -> 'Int8':
        """The whole of it (`w[...]`), which is how networks read a parameter."""
        if index is not Ellipsis:
            raise TypeError('an int8 weight is read whole, [...], or by rows, take_rows')
        return self

    def contract(self, x: jax.Array, spec: str) -> jax.Array:
        """einsum(spec, x, the weight): scaled in float32 after the sum, rounded once."""
        total = product(x, self.values.astype(x.dtype), spec, jnp.float32)
        outputs = [size for size, letter in zip(self.shape, spec.split(',')[1], strict=False)
                   if letter in spec.split('->')[1]]
        return (total * self.scale.reshape(outputs)).astype(x.dtype)

    def astype(self, dtype) -> jax.Array:
        """The weight in a floating dtype; the product is rounded once."""
        return (self.values.astype(jnp.float32) * self.scale).astype(dtype)


def quantise(weight: np.ndarray, summed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(values, scale) of a weight; rounds half to even, an all-zero channel has scale 1.

    Args:
      summed: axes that a matmul with this weight sums over; every other index has its own scale.
    """
    weight = np.asarray(weight, np.float32)
    largest = np.max(np.abs(weight), axis=summed, keepdims=True)
    scale = np.where(largest > 0, largest / LARGEST, 1).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale


def quantise_rows(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(int8 values, float32 scales) of x (..., h), one scale a row; on the device."""
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    scale = jnp.where(largest > 0, largest / LARGEST, 1.0)
    return jnp.rint(x / scale).astype(jnp.int8), scale


def take_rows(table: jax.Array | Int8, ids: jax.Array) -> jax.Array:
    """Rows of a (v, d) table; ids outside are clipped.

    Where it is compiled for a TPU, at least TPU_ROWS are fetched: for fewer the compiler lays the
    whole table out anew.
    """
    if not isinstance(table, Int8):
        if not 0 < ids.size < TPU_ROWS:
            return _rows(table, ids)
        return jax.lax.platform_dependent(table, ids, tpu=_some_rows, default=_rows)
    rows = Int8(take_rows(table.values, ids), take_rows(table.scale, ids), table.dtype)
    return rows.astype(table.dtype)


def _rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    return jnp.take(table, ids, axis=0, mode='clip')


def _some_rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    padded = jnp.pad(ids.reshape(-1), (0, TPU_ROWS - ids.size))
    # Or the cut moves into the gather.
    rows = jax.lax.optimization_barrier(_rows(table, padded))
    return rows[: ids.size].reshape(*ids.shape, table.shape[1])
