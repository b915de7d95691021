"""Sharding seen from inside a network: logical names only, resolved by ambient rules.

`parallel` enters `sharding_scope` around a step; without one, everything here does nothing, so
models run unchanged on one device and never import `parallel`.
"""

from collections.abc import Callable
import contextlib
import contextvars

import jax

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


def sharded_op(fn: Callable, in_axes, out_axes) -> Callable:
    """`fn` run once per device on its local block: what a Pallas kernel needs under a mesh.

    Args:
      fn: a function of arrays (or pytrees of arrays).
      in_axes, out_axes: pytrees of axis tuples, one per argument or output.
    """
    if _scope.get() is None:
        return fn
    mesh, resolve = _scope.get()

    def specs(axes):
        return jax.tree.map(resolve, axes, is_leaf=_is_axes)

    return jax.shard_map(
        fn, mesh=mesh, in_specs=specs(in_axes), out_specs=specs(out_axes), check_vma=False
    )


def _is_axes(x) -> bool:
    return isinstance(x, tuple) and all(a is None or isinstance(a, str) for a in x)
