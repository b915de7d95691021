"""Weight normalisation as a change of parameters: w = g v / |v| (Salimans and Kingma, 2016).

Checkpoints of vocoders hold g and v; networks here are written with plain kernels. `fold` makes the
second out of the first, once before inference, or inside the step while training; `normed` is the
network whose parameters are g and v, to convert, restore or train.
"""

from collections.abc import Mapping
import dataclasses

from flax import traverse_util
import jax
import jax.numpy as jnp

from mossjax.nn.param import Network

LENGTH, DIRECTION = 'g', 'v'


def length(direction: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """|v| with one entry along the axes where `shape` has one."""
    summed = tuple(axis for axis, size in enumerate(shape) if size == 1)
    return jnp.sqrt(jnp.sum(jnp.square(direction), axis=summed, keepdims=True))


def fold(params: Mapping) -> dict:
    """The parameter tree with every pair {g, v} made one kernel; other leaves as they are."""
    if set(params) == {LENGTH, DIRECTION}:
        g, v = params[LENGTH], params[DIRECTION]
        return v * (g / length(v, g.shape))
    return {k: fold(x) if isinstance(x, Mapping) else x for k, x in params.items()}


@dataclasses.dataclass(frozen=True)
class NormedNetwork(Network):
    """A network whose parameters have {g, v} in place of some kernels."""

    inner: Network
    paths: tuple[str, ...]

    def init(self, key: jax.Array) -> dict:
        """The inner network's law; g starts as the length that v has."""
        return self.split(self.inner.init(key))

    def split(self, params: Mapping) -> dict:
        """Parameters of the inner network with their kernels as pairs {g, v}; undoes `fold`."""
        flat = traverse_util.flatten_dict(params, sep='/')
        shapes = traverse_util.flatten_dict(self.shapes, sep='/')
        for path in self.paths:
            v = flat.pop(path)
            g = length(v, shapes[f'{path}/{LENGTH}'].shape)
            flat |= {f'{path}/{LENGTH}': g, f'{path}/{DIRECTION}': v}
        return traverse_util.unflatten_dict(flat, sep='/')

    def bind(self, params: dict):
        return self.inner.bind(fold(params))


def normed(network: Network, kept: Mapping[str, int]) -> NormedNetwork:
    """The network with {g, v} for the kernels at these paths.

    Args:
      kept: {path: axis of the kernel along which g varies} (torch: its axis 0).
    """
    shapes = traverse_util.flatten_dict(network.shapes, sep='/')
    axes = traverse_util.flatten_dict(network.axes, sep='/')
    for path, axis in kept.items():
        leaf, names = shapes.pop(path), axes.pop(path)
        ones = [1] * len(leaf.shape)
        ones[axis] = leaf.shape[axis]
        shapes[f'{path}/{LENGTH}'] = jax.ShapeDtypeStruct(tuple(ones), leaf.dtype)
        shapes[f'{path}/{DIRECTION}'] = leaf
        axes[f'{path}/{LENGTH}'] = tuple(n if a == axis else None for a, n in enumerate(names))
        axes[f'{path}/{DIRECTION}'] = names
    return NormedNetwork(
        network.make, network.graphdef, traverse_util.unflatten_dict(shapes, sep='/'),
        traverse_util.unflatten_dict(axes, sep='/'), network, tuple(kept),
    )  # fmt: skip
