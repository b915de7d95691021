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


def rows(mesh, rules) -> NamedSharding:
    """Sharding of batch arrays: the first axis divided over all row-holding devices."""
    return NamedSharding(mesh, rules_lib.spec(('batch',), rules))


def check_batch(batch: dict[str, np.ndarray], mesh, rules) -> None:
    """This process's rows fit the mesh: they divide, and they are the ones its devices hold.

    Raises:
      InputError: naming the array or the mesh axis at fault.
    """
    sharding = rows(mesh, rules)
    parts = math.prod(mesh.shape[a] for a in rules_lib.mesh_axes('batch', rules))
    processes, process = jax.process_count(), jax.process_index()
    held = {i[0].indices(parts)[0] for i in
            sharding.addressable_devices_indices_map((parts,)).values()}
    share = range(process * parts // processes, (process + 1) * parts // processes)
    if held != set(share):
        raise InputError(
            f'mesh {dict(mesh.shape)}: process {process} does not hold rows of its own; the '
            f'tensor axis must divide the {jax.local_device_count()} devices of one process'
        )
    for name, x in batch.items():
        if x.ndim < 1 or x.shape[0] % len(held):
            raise InputError(
                f'batch array {name!r} of shape {x.shape}: its first axis must be a multiple of '
                f'the {len(held)} row-holding devices of a process (mesh {dict(mesh.shape)})'
            )


def put_batch(batch: dict[str, np.ndarray], mesh, rules) -> dict[str, jax.Array]:
    """This process's rows (its share, in process order) -> global arrays on the mesh."""
    sharding = rows(mesh, rules)
    return {
        name: jax.make_array_from_process_local_data(sharding, x) for name, x in batch.items()
    }


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
