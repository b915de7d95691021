"""Sharding seen from inside a network: logical names only, resolved by ambient rules.

`parallel` enters `sharding_scope` around a step; without one, everything here does nothing, so
models run unchanged on one device and never import `parallel`.
"""

from collections.abc import Callable
import contextlib
import contextvars
import math

import jax

from mossjax.ops import layout

Resolve = Callable[[tuple[str | None, ...]], jax.sharding.PartitionSpec]

_scope: contextvars.ContextVar = contextvars.ContextVar('sharding_scope', default=None)


@contextlib.contextmanager
def sharding_scope(mesh: jax.sharding.Mesh, resolve: Resolve):
    """Within it, logical axes mean places on this mesh. `resolve` maps axes to a PartitionSpec."""
    token = _scope.set((mesh, resolve))
    try:
        yield
    finally:
        _scope.reset(token)


def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """Asks the compiler to lay an activation out by its logical axes."""
    if _scope.get() is None:
        return x
    mesh, resolve = _scope.get()
    return jax.lax.with_sharding_constraint(x, jax.sharding.NamedSharding(mesh, resolve(axes)))


def row_major(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """`ops.layout.row_major` of each device's block (b, t, d), on a mesh of TPUs. One position
    alone, which would take the room of eight, is left to the compiler.

    Args:
      axes: logical, as x lies already: the compiler would gather it whole to lay it out elsewhere.
    """
    if mesh() is None or platform() != 'tpu' or x.shape[1] == 1:
        return x
    return sharded_op(layout.row_major, (axes,), axes)(x)


def sharded_op(fn: Callable, in_axes, out_axes) -> Callable:
    """`fn` run once per device on its local block: what a Pallas kernel needs under a mesh.

    Args:
      fn: a function of arrays (or pytrees of arrays).
      in_axes, out_axes: pytrees of axis tuples, one per argument or output.
    """
    if _scope.get() is None:
        return fn
    _, resolve = _scope.get()

    def specs(axes):
        return jax.tree.map(resolve, axes, is_leaf=_is_axes)

    return per_device(fn, specs(in_axes), specs(out_axes))


def mesh() -> jax.sharding.Mesh | None:
    """That of the scope."""
    return None if _scope.get() is None else _scope.get()[0]


def platform() -> str:
    """'tpu', 'gpu' or 'cpu': of the scope's devices, there or not, else of the default device."""
    device = None if mesh() is None else mesh().abstract_mesh.abstract_device
    return device.platform if device else jax.default_backend()


def parts(name: str) -> int:
    """How many pieces the mesh divides a logical axis into."""
    return math.prod(mesh().shape[axis] for axis in _mesh_axes(name)) if mesh() else 1


def places(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> tuple[tuple[str, ...], ...]:
    """Axes of the mesh that each axis of an array is divided over, () where it does not divide
    (the fallback of `parallel.sharding.place`)."""
    return tuple(
        _mesh_axes(name) if size % parts(name) == 0 else ()
        for size, name in zip(shape, axes, strict=True)
    )


def spec(placed: tuple[tuple[str, ...], ...]) -> jax.sharding.PartitionSpec:
    """What `places` says, as the compiler wants it."""
    return jax.sharding.PartitionSpec(*(names or None for names in placed))


def per_device(fn: Callable, in_specs, out_specs) -> Callable:
    """`fn` run once per device of the scope's mesh, on its local blocks."""
    return jax.shard_map(
        fn, mesh=mesh(), in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def _mesh_axes(name: str) -> tuple[str, ...]:
    entry, *_ = *_scope.get()[1]((name,)), None  # a spec may leave out what is whole
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _is_axes(x) -> bool:
    return isinstance(x, tuple) and all(a is None or isinstance(a, str) for a in x)
