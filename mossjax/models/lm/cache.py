"""Keys and values of the three stacks, as one pytree."""

import dataclasses

import jax
import jax.numpy as jnp

from mossjax.errors import InputError
from mossjax.models.lm.config import LMConfig

AXES = ('layers', 'batch', 'slots', 'kv_heads', 'head_dim')  # of every buffer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """One entry per grid row in each of trunk, text branch and audio branch.

    Slots are common to the batch: an `extend` of t rows fills the next t slots of every sample,
    and rows that are padding are marked in `valid` and never attended to.

    Attributes:
      trunk, text, audio: (keys, values), each (l, b, slots, k, h); keys after norm and rotation.
      valid: (b, slots) bool, True where a real row was written.
      length: () int32, slots used so far.
    """

    trunk: tuple[jax.Array, jax.Array]
    text: tuple[jax.Array, jax.Array]
    audio: tuple[jax.Array, jax.Array]
    valid: jax.Array
    length: jax.Array

    @classmethod
    def empty(cls, config: LMConfig, batch: int, slots: int, dtype) -> 'Cache':
        """A cache for `slots` rows per sample.

        Raises:
          InputError: more slots than the model has positions.
        """
        if slots > config.max_position_embeddings:
            raise InputError(
                f'{slots} rows were asked for, but the model has max_position_embeddings '
                f'{config.max_position_embeddings}; shorten the prompt or the reply.'
            )

        def buffers(layers):
            shape = (layers, batch, slots, config.num_key_value_heads, config.head_dim)
            return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)

        return cls(
            trunk=buffers(config.num_shared_layers),
            text=buffers(config.num_modality_layers),
            audio=buffers(config.num_modality_layers),
            valid=jnp.zeros((batch, slots), bool),
            length=jnp.zeros((), jnp.int32),
        )

    @property
    def slots(self) -> int:
        return self.valid.shape[1]

    def positions(self, valid: jax.Array) -> jax.Array:
        """Positions (b, t) of the next rows: the number of real rows before each."""
        before = jnp.sum(self.valid, axis=1, dtype=jnp.int32)[:, None]
        return before + jnp.cumsum(valid, axis=1, dtype=jnp.int32) - valid

    def check_room(self, t: int) -> None:
        """Refuses to write past the end. Inside jit only a whole-cache overflow can be seen."""
        traced = isinstance(self.length, jax.core.Tracer)
        used = 0 if traced else int(self.length)
        if used + t > self.slots:
            raise InputError(
                f'the cache has {self.slots} slots, {used} used; {t} more rows do not fit. '
                'Make it larger with Cache.empty(slots=...).'
            )


def write(buffer: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    """Puts new (b, t, ...) into buffer (b, slots, ...) from slot `start` on."""
    return jax.lax.dynamic_update_slice_in_dim(buffer, new.astype(buffer.dtype), start, axis=1)
