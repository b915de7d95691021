"""Low-rank adapters: W + alpha / rank * down up, as an operation on parameter trees.

`Adapted` stands where a weight stood (a float array or an int8 one): in `ops.contract` the input
goes through the weight and, beside it, through the two thin matrices, so that adapted weights
never exist. Source: LoRA, arXiv 2106.09685.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import math
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp

from mossjax import values
from mossjax.errors import InputError
from mossjax.nn.param import Network, matching
from mossjax.ops.contract import contract
from mossjax.values import POSITIVE, Range, ranged

# path -> (axes a matmul sums over, number of leading layer axes); (None, _) for what is no matrix
Matrices = Callable[[str], tuple[tuple[int, ...] | None, int]]


@dataclasses.dataclass(frozen=True)
class Lora:
    """Settings of an adaptation; they travel with the adapters.

    Attributes:
      rank: inner width. alpha: the product is scaled by alpha / rank.
      targets: patterns of parameter paths to adapt, each must match a whole path.
    """

    rank: int = ranged(Range(1, 65536, whole=True), 16)
    alpha: float = ranged(POSITIVE, 32.0)
    targets: tuple[str, ...] = (r'.*/attn/[qkvo]',)

    def __post_init__(self):
        values.number(self.rank, 'LoRA rank', values.SIZE)
        values.number(self.alpha, 'LoRA alpha', values.POSITIVE)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def paths(self, shapes: Mapping, matrices: Matrices) -> list[str]:
        """Parameters that are adapted.

        Raises:
          InputError: a target matches nothing, or something that is no matrix of a linear map.
        """
        flat = list(traverse_util.flatten_dict(shapes, sep='/'))
        chosen = []
        for pattern in self.targets:
            chosen += matching(pattern, flat, 'LoRA target')
        for path in chosen:
            summed, layers = matrices(path)
            if summed is None or min(summed) != layers:
                raise InputError(f'LoRA target {path} is no matrix of a linear map; leave it out')
        return sorted(set(chosen))


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=['base', 'down', 'up'], meta_fields=['scale']
)
@dataclasses.dataclass(frozen=True, eq=False)
class Adapted:
    """base + scale * down up.

    Attributes:
      base: (*inputs, *outputs). down: (*inputs, r). up: (r, *outputs); in a stack all three have a
        leading layer axis, which a scan takes off.
    """

    base: Any
    down: jax.Array
    up: jax.Array
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def ndim(self) -> int:
        return self.base.ndim

    def __getitem__(self, index) -> 'Adapted':
        """The whole of it (`w[...]`), which is how networks read a parameter."""
        if index is not Ellipsis:
            raise TypeError('an adapted weight is read whole, [...]')
        return self

    def contract(self, x: jax.Array, spec: str) -> jax.Array:
        """einsum(spec, x, the adapted weight of one layer)."""
        left, rest = spec.split(',')
        right, out = rest.split('->')
        lead = ''.join(letter for letter in left if letter not in right)
        inside = ''.join(letter for letter in right if letter in left)
        outputs = ''.join(letter for letter in right if letter in out)
        thin = contract(x, self.down, f'{left},{inside}r->{lead}r')
        delta = contract(thin, self.up, f'{lead}r,r{outputs}->{out}')
        return contract(x, self.base, spec) + self.scale * delta

    def astype(self, dtype) -> jax.Array:
        """The adapted weight of one layer, for export."""
        delta = jnp.tensordot(self.down, self.up, 1) * self.scale
        return self.base.astype(dtype) + delta.astype(dtype)


def attach(params: Mapping, adapters: Mapping, lora: Lora) -> dict:
    """The parameter tree with its adapted leaves."""
    flat = traverse_util.flatten_dict(params, sep='/')
    parts = traverse_util.flatten_dict(adapters, sep='/')
    for path in sorted({path.rpartition('/')[0] for path in parts}):
        flat[path] = Adapted(flat[path], parts[f'{path}/down'], parts[f'{path}/up'], lora.scale)
    return traverse_util.unflatten_dict(flat, sep='/')


def merge(params: Mapping, adapters: Mapping, lora: Lora, matrices: Matrices) -> dict:
    """Plain arrays in the dtype of each weight, adapters worked in (summed in float32)."""
    flat = traverse_util.flatten_dict(attach(params, adapters, lora), sep='/')

    def plain(path, leaf):
        if not isinstance(leaf, Adapted):
            return leaf
        write_out = functools.partial(Adapted.astype, dtype=jnp.float32)
        for _ in range(matrices(path)[1]):
            write_out = jax.vmap(write_out)
        return write_out(leaf).astype(leaf.base.dtype)

    return traverse_util.unflatten_dict({p: plain(p, x) for p, x in flat.items()}, sep='/')


# ------------------------------------------------------------------------------- as a network


@dataclasses.dataclass(frozen=True)
class AdaptedNetwork(Network):
    """A network whose parameters are {'base': its own, 'lora': adapters}."""

    inner: Network
    lora: Lora
    matrices: Matrices

    def init(self, key: jax.Array) -> dict:
        base_key, lora_key = jax.random.split(key)
        return {'base': self.inner.init(base_key), 'lora': self.init_adapters(lora_key)}

    def init_adapters(self, key: jax.Array) -> dict:
        """down normal with variance 1 / inputs, up zero: the network starts as it was."""
        flat = traverse_util.flatten_dict(self.shapes['lora'], sep='/')
        made = {}
        for number, (path, x) in enumerate(sorted(flat.items())):
            target, _, part = path.rpartition('/')
            if part == 'up':
                made[path] = jnp.zeros(x.shape, x.dtype)
                continue
            inputs = math.prod(x.shape[self.matrices(target)[1] : -1])
            own = jax.random.fold_in(key, number)
            made[path] = jax.random.normal(own, x.shape, x.dtype) * inputs**-0.5
        return traverse_util.unflatten_dict(made, sep='/')

    def bind(self, params: dict):
        return self.inner.bind(attach(params['base'], params['lora'], self.lora))


def adapt(network: Network, lora: Lora, matrices: Matrices) -> AdaptedNetwork:
    """The network with adapters on the targets; 'rank' is the logical axis of their inner width.

    Raises:
      InputError: a target is wrong, see `Lora.paths`.
    """
    shapes = traverse_util.flatten_dict(network.shapes, sep='/')
    axes = traverse_util.flatten_dict(network.axes, sep='/')
    lora_shapes, lora_axes = {}, {}
    for path in lora.paths(network.shapes, matrices):
        summed, layers = matrices(path)
        shape, names = tuple(shapes[path].shape), tuple(axes[path])
        cut = layers + len(summed)

        def put(part, shape, names, path=path):
            lora_shapes[f'{path}/{part}'] = jax.ShapeDtypeStruct(shape, jnp.float32)
            lora_axes[f'{path}/{part}'] = names

        put('down', (*shape[:cut], lora.rank), (*names[:cut], 'rank'))
        put('up', (*shape[:layers], lora.rank, *shape[cut:]),
            (*names[:layers], 'rank', *names[cut:]))

    def tree(base, flat):
        return {'base': base, 'lora': traverse_util.unflatten_dict(flat, sep='/')}

    return AdaptedNetwork(
        network.make, network.graphdef, tree(network.shapes, lora_shapes),
        tree(network.axes, lora_axes), network, lora, matrices,
    )  # fmt: skip
