"""Keys and values of the three stacks for a batch of lanes, as one pytree.

A lane is one dialogue in one row of the batch: it has a length of its own and is extended and cut
without the others noticing. What lies beyond its length is left over and never seen.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp

from mossjax.errors import InputError
from mossjax.models.lm.config import LMConfig
from mossjax.ops.quant import Int8, quantise_rows

AXES = ('layers', 'batch', 'kv_heads', 'slots', 'head_dim')  # of every buffer

WRITTEN_OUT = 16  # lanes

Buffer = jax.Array | Int8  # (l, b, k, slots, h)
Pair = tuple[Buffer, Buffer]  # keys after norm and rotation, values


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stack:
    """What one stack of layers (trunk or branch) has read of each lane.

    Attributes:
      pair: keys and values, (l, b, k, slots, h) each.
      length: (b,) int32 rows read.
    """

    pair: Pair
    length: jax.Array

    def longer(
        self, new: tuple[jax.Array, jax.Array], count: jax.Array, first: jax.Array | int = 0
    ) -> 'Stack':
        """With new keys and values (l, n, t, k, h) behind n lanes from `first` on.

        Args:
          count: (n,) how many of the t are real.
        """
        pair = tuple(
            _write(buffer, x, self.length, first) for buffer, x in zip(self.pair, new, strict=True)
        )
        own = jax.lax.dynamic_slice_in_dim(self.length, first, len(count)) + count
        return Stack(pair, jax.lax.dynamic_update_slice_in_dim(self.length, own, first, 0))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The three stacks, and the trunk's outputs that a waiting branch has still to read.

    Attributes:
      trunk, text, audio: what each has read.
      behind_text, behind_audio: (b, p, d) trunk outputs of the last rows of each lane, of which a
        branch has still to read the first trunk.length - branch.length. p may be 0: nothing waits.
    """

    trunk: Stack
    text: Stack
    audio: Stack
    behind_text: jax.Array
    behind_audio: jax.Array

    @classmethod
    def empty(
        cls, config: LMConfig, lanes: int, rows: int, dtype, *, spare: int = 0, wait: int = 0,
        store: Callable = jnp.zeros,
    ) -> 'Cache':
        """A cache for `rows` rows of each lane.

        Args:
          spare: slots behind them, which the padding of a piece that is read may fall into.
          wait: rows that a branch may stay behind the trunk; it reads as many when it catches up.
          store: (shape, dtype) -> buffer, `jnp.zeros` or `int8_rows`.

        Raises:
          InputError: more rows than the model has positions.
        """
        if rows > config.max_position_embeddings:
            raise InputError(
                f'{rows} rows were asked for, but the model has max_position_embeddings '
                f'{config.max_position_embeddings}; shorten the prompt or the reply'
            )
        slots = rows + max(spare, wait)

        def stack(layers):
            shape = (layers, lanes, config.num_key_value_heads, slots, config.head_dim)
            pair = store(shape, dtype), store(shape, dtype)
            return Stack(pair, jnp.zeros((lanes,), jnp.int32))

        behind = jnp.zeros((lanes, wait, config.hidden_size), dtype)
        return cls(
            stack(config.num_shared_layers), stack(config.num_modality_layers),
            stack(config.num_modality_layers), behind, behind,
        )  # fmt: skip

    @property
    def slots(self) -> int:
        return self.trunk.pair[0].shape[3]


def int8_rows(shape: tuple[int, ...], dtype) -> Int8:
    """A buffer in int8, one scale a row of a head: half the memory of bfloat16."""
    return Int8(
        jnp.zeros(shape, jnp.int8), jnp.ones((*shape[:-1], 1), jnp.float32), jnp.dtype(dtype).name
    )


def _write(buffer: Buffer, new: jax.Array, start: jax.Array, first) -> Buffer:
    """Puts new (l, n, t, k, h) into lanes of buffer (l, b, k, slots, h), from start[b] on."""
    new = new.transpose(0, 1, 3, 2, 4)
    if isinstance(buffer, Int8):
        values, scale = quantise_rows(new)
        return Int8(
            _write_lanes(buffer.values, values, start, first),
            _write_lanes(buffer.scale, scale, start, first), buffer.dtype,
        )
    return _write_lanes(buffer, new.astype(buffer.dtype), start, first)


def _write_lanes(buffer: jax.Array, new: jax.Array, start: jax.Array, first) -> jax.Array:
    """In-place updates, lane after lane: a scatter over lanes would copy the buffer.

    Those of a few lanes are written out: of some loops of them the TPU compiler cannot tell the
    buffer from the news.
    """

    def lane(i, buffer):
        own = jax.lax.dynamic_slice_in_dim(new, i, 1, axis=1)
        return jax.lax.dynamic_update_slice(buffer, own, (0, first + i, 0, start[first + i], 0))

    return jax.lax.fori_loop(0, new.shape[1], lane, buffer, unroll=WRITTEN_OUT)
