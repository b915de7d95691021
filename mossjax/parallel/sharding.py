"""Parameters onto a mesh: resolve names, fall back where sizes do not divide, report bytes."""

import math

from absl import logging
from flax import traverse_util
import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from mossjax.errors import InputError
from mossjax.parallel import rules as rules_lib


def place(path: str, shape, axes, mesh, rules) -> NamedSharding:
    """Sharding of one array; an axis that its mesh axes do not divide is kept whole, and said."""
    spec = rules_lib.spec(axes, rules)
    entries = []
    for size, name, entry in zip(shape, axes, spec, strict=True):
        parts = math.prod(mesh.shape[a] for a in rules_lib.mesh_axes(name, rules))
        if size % parts:
            logging.warning(
                '%s: axis %s of size %d is not divisible by %d (mesh %s); kept whole',
                path, name, size, parts, dict(mesh.shape),
            )
            entry = None
        entries.append(entry)
    return NamedSharding(mesh, PartitionSpec(*entries))


def shard(shapes: dict, axes: dict, mesh, rules) -> dict:
    """The tree of shapes with a sharding on each leaf (ShapeDtypeStructs)."""
    flat_axes = traverse_util.flatten_dict(axes, sep='/')
    flat = traverse_util.flatten_dict(shapes, sep='/')
    placed = {
        path: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=place(path, x.shape, flat_axes[path], mesh, rules)
        )
        for path, x in flat.items()
    }
    return traverse_util.unflatten_dict(placed, sep='/')


def check_shapes(given: dict, expected: dict, what: str) -> None:
    """Names and shapes of two trees agree.

    Raises:
      InputError: naming every missing, unexpected or mis-shaped parameter.
    """
    given = traverse_util.flatten_dict(given, sep='/')
    expected = traverse_util.flatten_dict(expected, sep='/')
    faults = [f'missing {p} {expected[p].shape}' for p in sorted(expected.keys() - given.keys())]
    faults += [f'unexpected {p} {given[p].shape}' for p in sorted(given.keys() - expected.keys())]
    faults += [
        f'{p} has shape {tuple(given[p].shape)}, the network wants {tuple(expected[p].shape)}'
        for p in sorted(given.keys() & expected.keys())
        if tuple(given[p].shape) != tuple(expected[p].shape)
    ]
    if faults:
        shown = '; '.join(faults[:8]) + (f'; and {len(faults) - 8} more' if faults[8:] else '')
        raise InputError(
            f'{what} do not fit the network: {shown}. Check that the model config is the one '
            'they were made with, or convert them again'
        )


def bytes_per_device(tree) -> int:
    """Bytes one device holds of a tree of arrays or sharded shapes."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize
        for x in jax.tree.leaves(tree)
    )


def report(placed: dict) -> str:
    """A table: parameter, shape, PartitionSpec, bytes on each device; the sum last."""
    flat = traverse_util.flatten_dict(placed, sep='/')
    lines = [
        f'{path:40} {str(tuple(x.shape)):28} {str(x.sharding.spec):48} {bytes_per_device(x):>16,}'
        for path, x in flat.items()
    ]
    return '\n'.join([*lines, f'bytes on each device: {bytes_per_device(placed):,}'])
