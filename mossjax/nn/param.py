"""Parameters as plain nested dicts, declared inside NNX modules.

Modules give structure; the arrays live outside them. A network is described once, without
allocating anything:

    net = describe(lambda rngs: Encoder(config, rngs=rngs))
    params = net.init(jax.random.key(0))   # nested dict of arrays
    y = net.bind(params)(x)                # an NNX module, its __call__ is pure

`net.shapes` and `net.axes` have the structure of `params` and hold `jax.ShapeDtypeStruct`s and
tuples of logical axis names: enough to shard, plan, convert or restore a network that no host
could hold.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
import re
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from mossjax.errors import InputError

Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]


def normal(stddev: float) -> Initializer:
    """Gaussian with the given standard deviation."""
    return lambda key, shape, dtype: stddev * jax.random.normal(key, shape, dtype)


def fan_in(scale: float = 1.0, *, axes: int | tuple[int, ...] = 0) -> Initializer:
    """Gaussian with variance scale / (product of the input axes of the kernel)."""
    axes = (axes,) if isinstance(axes, int) else axes

    def init(key, shape, dtype):
        return jax.random.normal(key, shape, dtype) * math.sqrt(
            scale / math.prod(shape[a] for a in axes)
        )

    return init


def zeros(key, shape, dtype):
    del key
    return jnp.zeros(shape, dtype)


def ones(key, shape, dtype):
    del key
    return jnp.ones(shape, dtype)


def param(
    rngs: nnx.Rngs,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    init: Initializer,
    dtype=jnp.float32,
) -> nnx.Param:
    """Declares one weight: its shape, the logical name of each axis, and its initial law."""
    if len(shape) != len(axes):
        raise ValueError(f'shape {shape} and axes {axes} differ in length')
    return nnx.Param(init(rngs.params(), shape, dtype), axes=axes)


def stack(make: Callable[[nnx.Rngs], nnx.Module], n: int, rngs: nnx.Rngs) -> nnx.Module:
    """n copies of a module as one module whose weights have a leading 'layers' axis."""
    module = jax.vmap(lambda key: make(nnx.Rngs(params=key)))(jax.random.split(rngs.params(), n))
    for _, weight in nnx.to_flat_state(nnx.state(module)):
        weight.set_metadata(axes=('layers', *weight.get_metadata()['axes']))
    return module


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=['layers'], meta_fields=[]
)
@dataclasses.dataclass(frozen=True, eq=False)
class Apart:
    """A weight of a `stack`, layer by layer: each is an array of its own.

    A scan cuts the layer's weights out of the stack. Accelerators do so while they multiply; a CPU
    copies them, at every step.
    """

    layers: tuple

    def __getitem__(self, index) -> 'Apart':
        """The whole of it (`w[...]`), which is how networks read a parameter."""
        if index is not Ellipsis:
            raise TypeError('a weight that is held apart is read whole, [...]')
        return self


def apart(weight) -> Apart:
    """A weight of a `stack` (an array, a tree of them, or their shapes), layer by layer."""

    def layer(i: int, x):
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
        return x[i]

    count = jax.tree.leaves(weight)[0].shape[0]
    return Apart(tuple(jax.tree.map(functools.partial(layer, i), weight) for i in range(count)))


def depth(stacked: nnx.Module) -> int:
    """How many layers a `stack` has."""
    first = jax.tree.leaves(stacked, is_leaf=_is_apart)[0]
    return len(first.layers) if _is_apart(first) else first.shape[0]


def scan_layers(stacked: nnx.Module, carry, body, xs=None, *, remat=lambda f: f):
    """Runs `body(layer, carry, x) -> (carry, y)` over a `stack`, first layer first.

    Args:
      stacked: a module made by `stack`; with weights that are `Apart`, the layers are written out.
      carry: what flows from layer to layer.
      xs: per-layer inputs with a leading layer axis (a cache, say), or None.
      remat: wraps the body, e.g. `jax.checkpoint`, to trade memory for recomputation.

    Returns:
      (last carry, ys stacked along a leading layer axis).
    """

    def step(carry, layer_and_x):
        layer, x = layer_and_x
        return body(layer, carry, x)

    weights = jax.tree.leaves(stacked, is_leaf=_is_apart)
    if not any(map(_is_apart, weights)):
        return jax.lax.scan(remat(step), carry, (stacked, xs))
    layers = [
        jax.tree.map(lambda w, i=i: w.layers[i], stacked, is_leaf=_is_apart)
        for i in range(len(weights[0].layers))
    ]

    def chosen(carry, index_and_x):
        # Written out one after another, the layers would each keep a copy of what all of them read.
        index, x = index_and_x
        ways = [lambda carry, x, layer=layer: step(carry, (layer, x)) for layer in layers]
        return jax.lax.switch(index, ways, carry, x)

    return jax.lax.scan(remat(chosen), carry, (jnp.arange(len(layers)), xs))


def _is_apart(leaf) -> bool:
    return isinstance(leaf, Apart)


@dataclasses.dataclass(frozen=True)
class Network:
    """A network before it has weights: what `describe` returns."""

    make: Callable[[nnx.Rngs], nnx.Module]
    graphdef: Any
    shapes: dict
    axes: dict

    def init(self, key: jax.Array) -> dict:
        """Fresh parameters; jit it with out_shardings to create them already sharded."""
        return nnx.to_pure_dict(nnx.state(self.make(nnx.Rngs(params=key))))

    def bind(self, params: dict) -> nnx.Module:
        """The module on these parameters (arrays or tracers, any dtype)."""
        return nnx.merge(self.graphdef, params)


def describe(make: Callable[[nnx.Rngs], nnx.Module]) -> Network:
    """Reads shapes, logical axes and structure off a module without allocating its weights."""
    module = nnx.eval_shape(lambda: make(_AnyKey()))
    graphdef, state = nnx.split(module)
    axes = jax.tree.map(
        lambda weight: weight.get_metadata()['axes'],
        state,
        is_leaf=lambda x: isinstance(x, nnx.Variable),
    )
    return Network(make, graphdef, nnx.to_pure_dict(state), _as_dict(axes))


class _AnyKey:
    """Stands for the generators of a network of which only the shapes are wanted.

    Flax's own count the keys they give; under tracing that takes time in the square of the number
    of weights: six seconds for a network of 800.
    """

    def params(self) -> jax.Array:
        return jax.random.key(0)


def _as_dict(state) -> dict:
    """nnx.State of non-variables to nested dict (tuples stay leaves)."""
    return {k: _as_dict(v) if hasattr(v, 'items') else v for k, v in state.items()}


def matching(
    pattern: str, paths: Sequence[str], what: str, needed: bool = True
) -> list[str]:
    """The parameter paths that a regular expression matches whole.

    Args:
      what: the setting it stands in, for the message.
      needed: it must match something.

    Raises:
      InputError: it is no regular expression, or matches nothing.
    """
    try:
        found = [path for path in paths if re.fullmatch(pattern, path)]
    except re.error as error:
        raise InputError(f'{what} {pattern!r} is no regular expression ({error})') from None
    if needed and not found:
        tops = ', '.join(dict.fromkeys(path.split('/')[0] for path in paths))
        raise InputError(
            f'{what} {pattern!r} matches no parameter; patterns must match a whole path such as '
            f'{paths[0]!r} (top level: {tops})'
        )
    return found
