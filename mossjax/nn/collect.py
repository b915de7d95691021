"""Weights whole on every device for one use, and their gradient back in parts: inside
`shard.per_device`, where collectives are written out.

`places` of an array are those of `nn.shard`: for each of its axes the mesh axes that divide it.
"""

import jax
from jax import lax

Places = tuple[tuple[str, ...], ...]


def gather(x: jax.Array, places: Places) -> jax.Array:
    """The whole array of its parts."""
    for axis, names in enumerate(places):
        if names:
            x = lax.all_gather(x, names, axis=axis, tiled=True)
    return x


def reduce(x: jax.Array, over: tuple[str, ...], places: Places) -> jax.Array:
    """The own part of the sum of whole arrays.

    Args:
      over: mesh axes along which the arrays differ; along others all devices hold the same.
    """
    for axis, names in enumerate(places):
        if names and set(names) <= set(over):
            x = lax.psum_scatter(x, names, scatter_dimension=axis, tiled=True)
        elif names:
            size = x.shape[axis] // lax.axis_size(names)
            x = lax.dynamic_slice_in_dim(x, lax.axis_index(names) * size, size, axis)
    kept = {name for names in places for name in names}
    others = tuple(name for name in over if name not in kept)
    return lax.psum(x, others) if others else x


def names_of(places: Places) -> tuple[str, ...]:
    return tuple(name for names in places for name in names)
