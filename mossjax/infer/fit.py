"""Whether a language model fits the device it is to run on, and what would where it does not."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp

from mossjax import files
from mossjax.convert import int8
from mossjax.infer import buckets
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.model import network

BESIDE = 3 * 2**29  # bytes for the codec and what a step needs
FULL = 'RESOURCE_EXHAUSTED'  # how XLA's errors begin where memory was asked for in vain
GIB = 2**30


def room(device: jax.Device | None = None) -> int:
    """Bytes of a device, the first by default; of a CPU those that are free."""
    device = device or jax.devices()[0]
    stats = device.memory_stats() or {}
    return stats.get('bytes_limit') or files.available_memory() or 2**63


def weights(config: LMConfig, quantised: bool = False) -> int:
    """Bytes of the parameters, as stored or in int8."""
    shapes = network(config).shapes
    if quantised:
        shapes = int8.abstract(shapes, jnp.dtype(config.dtype))
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    size = jnp.dtype(config.dtype).itemsize
    return sum(math.prod(x.shape) * size for x in jax.tree.leaves(shapes))


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


def advice(config: LMConfig, quantised: bool, bytes_there: int | None = None) -> str:
    """What to do where the device's memory did not suffice."""
    there = room() if bytes_there is None else bytes_there
    own, small = weights(config), weights(config, quantised=True)
    left = there - BESIDE - (small if quantised else own)
    rows = max(0, left // cache(config, 1))
    said = (
        f'the device has {there / GIB:.1f} GiB and that was not enough: the model takes '
        f'{(small if quantised else own) / GIB:.1f} GiB'
    )
    if not quantised and small + cache(config, 1024) + BESIDE < there:
        return f'{said}, with --int8 {small / GIB:.1f}; give that flag'
    if rows >= 128:
        return (
            f'{said}, so about {rows} rows of dialogue fit beside it (12.5 a second of speech); '
            'lower --max_new_tokens or shorten the dialogue, and end what else uses the device'
        )
    return f'{said}; take a larger device, or several: {math.ceil(own / there) + 1} would do'


def read_config(model_dir) -> LMConfig:
    """The configuration of a model directory.

    Raises:
      InputError: it is missing or damaged.
    """
    path = Path(model_dir) / 'config.json'
    return LMConfig.from_hf(files.read_json(path), where=str(path))
