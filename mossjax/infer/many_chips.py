"""One model on several chips: heads, hidden units and vocabulary divided by training's rules."""

from collections.abc import Callable
import contextlib
import math

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mossjax.convert import int8, placement
from mossjax.convert import rules as tables
from mossjax.convert.placement import Put
from mossjax.models.lm.cache import AXES, Cache
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.model import network
from mossjax.nn.shard import sharding_scope
from mossjax.ops.quant import Int8
from mossjax.parallel import rules
from mossjax.parallel.mesh import MeshConfig, make_mesh
from mossjax.parallel.sharding import place, shard

RULES = rules.preset('fsdp_tensor')


def mesh_for(config: LMConfig, devices=None) -> Mesh | None:
    """A mesh of as many devices as divide the heads evenly; None where one is all there is.

    Args:
      devices: this process's by default, if they are accelerators.
    """
    if devices is None:
        devices = [d for d in jax.local_devices() if d.platform != 'cpu']
    count = max((n for n in counts(config) if n <= len(devices)), default=1)
    if count == 1:
        return None
    return make_mesh(MeshConfig(fsdp=1, tensor=count), list(devices)[:count])


def counts(config: LMConfig) -> list[int]:
    """Numbers of devices that divide the heads evenly."""
    heads = math.gcd(config.num_key_value_heads, config.num_attention_heads)
    return [n for n in range(1, heads + 1) if heads % n == 0]


def put(config: LMConfig, mesh: Mesh, quantised: bool = False) -> Put:
    """Where `placement.open_lm` puts the parameters, as stored or in int8."""
    net = network(config)
    placed = shard(net.shapes, net.axes, mesh, RULES)
    if not quantised:
        return placement.on_devices(placed)
    on_host, flat = int8.int8('bfloat16', lambda x: x), tables.flatten(placed)

    def to_mesh(path: str, param: placement.View):
        leaf, spec = on_host(path, param), flat[path].sharding.spec
        if not isinstance(leaf, Int8):
            return jax.device_put(leaf, NamedSharding(mesh, spec))
        values, scale = (
            jax.device_put(x, NamedSharding(mesh, divided(x.shape, spec)))
            for x in (leaf.values, leaf.scale)
        )
        return Int8(values, scale, leaf.dtype)

    return to_mesh


def divided(shape: tuple[int, ...], spec: PartitionSpec) -> PartitionSpec:
    """A weight's spec for its values or scales in int8: an axis of one is kept whole."""
    return PartitionSpec(
        *(None if size == 1 else name for size, name in zip(shape, [*spec], strict=False))
    )


def scope(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Within it programs are traced for a mesh."""
    if mesh is None:
        return contextlib.nullcontext()
    return sharding_scope(mesh, rules.resolver(RULES))


def cache_placed(mesh: Mesh | None) -> Callable[[Cache], Cache]:
    """(cache) -> the cache, each chip with the keys and values of its own heads."""
    if mesh is None:
        return lambda cache: cache
    whole = NamedSharding(mesh, PartitionSpec())

    def placed(x: jax.Array) -> jax.Array:
        # Buffers are the only leaves of so many axes; their scales, in int8, are like them.
        where = place('cache', x.shape, AXES, mesh, RULES) if x.ndim == len(AXES) else whole
        return jax.lax.with_sharding_constraint(x, where)

    return lambda cache: jax.tree.map(placed, cache)
