"""int8 weights of the language model, quantised while they are read.

A `put` for `placement.open_lm`: layer by layer, so that neither the host nor the device ever holds
more of the original weights than one layer, or one slab of an embedding.
"""

from collections.abc import Callable, Mapping
import math

import jax
import numpy as np

from mossjax.convert import rules
from mossjax.convert.placement import Put, View
from mossjax.models.lm.matrices import layer_axes, summed_axes
from mossjax.ops.quant import Int8, quantise

SLAB_BYTES = 64 * 2**20


def scale_shape(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the scales of a weight."""
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


def int8(dtype, place: Callable = jax.device_put) -> Put:
    """Quantises every matrix; the rest is stored in `dtype`, as which the network computes.

    Args:
      place: takes a numpy array to where it is wanted.
    """

    def put(path: str, param: View):
        axes = summed_axes(path)
        if axes is None:
            return place(param[...].astype(dtype))
        values = np.empty(param.shape, np.int8)
        scale = np.empty(scale_shape(param.shape, axes), np.float32)
        for index in _slabs(param.shape, axes, layer_axes(path)):
            own = tuple(slice(None) if i in axes else part for i, part in enumerate(index))
            values[index], scale[own] = quantise(param[index], axes)
        return Int8(place(values), place(scale), np.dtype(dtype).name)

    return put


def abstract(shapes: Mapping, dtype) -> dict:
    """What `int8` makes of parameters of these shapes, as ShapeDtypeStructs."""

    def leaf(path: str, shape: tuple[int, ...]):
        axes = summed_axes(path)
        if axes is None:
            return jax.ShapeDtypeStruct(shape, dtype)
        return Int8(
            jax.ShapeDtypeStruct(shape, np.int8),
            jax.ShapeDtypeStruct(scale_shape(shape, axes), np.float32), np.dtype(dtype).name,
        )

    flat = rules.flatten(shapes)
    return rules.unflatten({path: leaf(path, tuple(x.shape)) for path, x in flat.items()})


def _slabs(shape: tuple[int, ...], axes: tuple[int, ...], layers: int):
    """Indices that cover a parameter: one layer at a time, cut along an axis that is not summed."""
    cut = next(i for i in range(layers, len(shape)) if i not in axes)
    row = math.prod(shape[layers:]) // shape[cut] * 4  # bytes in float32
    step = max(1, SLAB_BYTES // row)
    for layer in np.ndindex(shape[:layers]):
        for start in range(0, shape[cut], step):
            index = [slice(0, n) for n in shape]
            index[:layers] = [slice(i, i + 1) for i in layer]
            index[cut] = slice(start, min(start + step, shape[cut]))
            yield tuple(index)
