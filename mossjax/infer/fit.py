"""How devices hold a language model that is to run on them, and what to do where it does not fit.
"""

from collections.abc import Mapping
import dataclasses
import functools
import math
from pathlib import Path

from flax import traverse_util
import jax
import jax.numpy as jnp

from mossjax import files
from mossjax.convert import int8
from mossjax.convert.placement import Put
from mossjax.infer import buckets, many_chips
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.matrices import layer_axes
from mossjax.models.lm.model import network
from mossjax.nn.flash_cache import in_kernel
from mossjax.nn.param import Network, apart
from mossjax.ops.cached_attention import at_once, in_blocks
from mossjax.ops.quant import Int8
from mossjax.parallel.chips import GIB

BESIDE = 3 * 2**29  # bytes for the codec and what a step needs
APART = 2**20  # bytes of a layer's largest matrix from which on a CPU holds layers apart
RECALL = {'cpu': in_blocks, 'tpu': in_kernel}  # how a platform reads the cache, others at once
FULL = 'RESOURCE_EXHAUSTED'  # how XLA's errors begin where memory was asked for in vain


def room(device: jax.Device | None = None) -> int:
    """Bytes of a device, the first by default; of a CPU those that are free."""
    device = device or jax.devices()[0]
    stats = device.memory_stats() or {}
    return stats.get('bytes_limit') or files.available_memory() or 2**63


def weights(config: LMConfig, quantised: bool = False) -> int:
    """Bytes of the parameters, as stored or in int8."""
    shapes, dtype = network(config).shapes, jnp.dtype(config.dtype)
    if not quantised:
        return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) * dtype.itemsize
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(int8.abstract(shapes, dtype)))


def cache(config: LMConfig, rows: int) -> int:
    """Bytes of the keys and values of one dialogue of so many rows."""
    layers = config.num_shared_layers + 2 * config.num_modality_layers
    row = 2 * layers * config.num_key_value_heads * config.head_dim
    return rows * row * jnp.dtype(config.dtype).itemsize


def wants_int8(config: LMConfig, chips: int = 1, bytes_there: int | None = None) -> bool:
    """Whether a model fits with a dialogue of LONG rows in int8 only, or not even so.

    Args:
      chips: that it is divided over.
      bytes_there: of one; asked of it by default.
    """
    there = chips * (room() if bytes_there is None else bytes_there)
    rows = min(buckets.LONG, config.max_position_embeddings)
    return weights(config) + cache(config, rows) + BESIDE > there


@dataclasses.dataclass(frozen=True)
class Held:
    """How the devices that are there hold a model.

    Attributes:
      mesh: of those it is divided over, None if it lies on one.
      quantised: in int8; otherwise as stored.
    """

    config: LMConfig
    mesh: jax.sharding.Mesh | None
    quantised: bool

    @classmethod
    def here(cls, config: LMConfig, quantised: bool | None = None, divides: bool = True) -> 'Held':
        """On this process's devices.

        Args:
          quantised: where the memory asks for it by default.
          divides: it may lie on several devices.
        """
        mesh = many_chips.mesh_for(config) if divides else None
        held = cls(config, mesh, bool(quantised))
        if quantised is None:
            return dataclasses.replace(held, quantised=wants_int8(config, held.chips))
        return held

    @property
    def chips(self) -> int:
        return self.mesh.devices.size if self.mesh else 1

    def put(self) -> Put | None:
        """What makes leaves of its parameters, see `convert.placement`."""
        if self.mesh is not None:
            return many_chips.put(self.config, self.mesh, self.quantised)
        return int8.int8('bfloat16') if self.quantised else None

    def advice(self, bytes_there: int | None = None) -> str:
        """What to do where the memory did not suffice.

        Args:
          bytes_there: of one device; asked of it by default.
        """
        each = room() if bytes_there is None else bytes_there
        there = self.chips * each
        own, small = weights(self.config), weights(self.config, quantised=True)
        taken, row = small if self.quantised else own, cache(self.config, 1)
        rows = max(0, (there - BESIDE - taken) // row)
        has = 'the device has' if self.mesh is None else f'{self.chips} devices have'
        said = (
            f'{has} {there / GIB:.1f} GiB and that was not enough: the model takes '
            f'{taken / GIB:.1f} GiB'
        )
        if not self.quantised and small + 1024 * row + BESIDE < there:
            return f'{said}, with --int8 {small / GIB:.1f}; give that flag'
        if rows >= 128:
            return (
                f'{said}, so about {rows} rows of dialogue fit beside it (12.5 a second of '
                'speech); lower --max_new_tokens or shorten the dialogue, and end what else uses '
                'the device'
            )
        counts = many_chips.counts(self.config)
        enough = next((n for n in counts if not wants_int8(self.config, n, each)), None)
        return f'{said}; take a larger device' + (f', or {enough} of this kind' if enough else '')


def lm(config: LMConfig, platform: str | None = None) -> Network:
    """The language model as a platform runs it best, by default that of the first device."""
    return network(config, recall=RECALL.get(platform or jax.devices()[0].platform, at_once))


def placed(params: dict) -> dict:
    """The parameters of a language model where its programs want them; shapes stay shapes.

    A CPU computes in float32, if there is room for such weights (it has no arithmetic for
    bfloat16: each product would convert its whole matrix), and gets the layers of a large model
    one by one, see `nn.param.Apart`. `params` is emptied meanwhile, so that nothing is held twice.
    """
    flat = traverse_util.flatten_dict(params, sep='/')
    params.clear()
    put, split = functools.partial(jax.tree.map, _put), False
    if jax.devices()[0].platform == 'cpu':
        split = apart_pays(flat, {path: int(bool(layer_axes(path))) for path in flat})
        floats = [x for x in jax.tree.leaves(flat) if jnp.issubdtype(x.dtype, jnp.floating)]
        if 4 * sum(math.prod(x.shape) for x in floats) < room() / 2:
            put = _in_float32
    for path in flat:
        held = put(flat[path])
        flat[path] = apart(held) if split and layer_axes(path) else held
    return traverse_util.unflatten_dict(flat, sep='/')


def apart_pays(flat: dict, stacks: Mapping) -> bool:
    """Is a layer's largest matrix so large that a CPU had better hold the layers one by one?

    Args:
      flat: path -> weight. stacks: path -> how many of its first axes are layers.
    """
    held = (
        math.prod(x.shape[stacks[path] :]) * x.dtype.itemsize
        for path, weight in flat.items() if stacks[path] for x in jax.tree.leaves(weight)
    )  # fmt: skip
    return max(held, default=0) >= APART


def _in_float32(weight):
    def one(x):
        if isinstance(x, Int8):
            return Int8(_put(x.values), _put(x.scale), 'float32')
        return _put(x, jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else None)

    return jax.tree.map(one, weight, is_leaf=lambda x: isinstance(x, Int8))


def _put(x, dtype=None):
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, dtype or x.dtype)
    return jax.device_put(x if dtype is None else x.astype(dtype))


def read_config(model_dir) -> LMConfig:
    """The configuration of a model directory.

    Raises:
      InputError: it is missing or damaged.
    """
    path = Path(model_dir) / 'config.json'
    return LMConfig.from_hf(files.read_json(path), where=str(path))
