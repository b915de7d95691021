"""Facts about a flow decoder; `convert.flow_config` reads and writes their file."""

import dataclasses

import jax
import jax.numpy as jnp

from mossjax import values
from mossjax.errors import InputError

# Blocks are gone through one by one, so they are few.
_LAYERS = {'blocks', 'up_blocks', 'transformers', 'mid_blocks'}
_RATES = {'sigma_min', 'condition_dropout', 'dropout'}

@dataclasses.dataclass(frozen=True)
class Context:
    """What a code may depend on: the four streaming modes as data.

    Attributes:
      chunk: codes per block of the block-causal mask; None lets every position see every other.
      held: the last `held` codes are look-ahead only, they give no frames (the end is not known
        yet). 0 when the utterance is complete.
    """

    chunk: int | None = None
    held: int = 0


OFFLINE = Context()


@dataclasses.dataclass(frozen=True)
class Window:
    """How far back a stream sees; all in codes.

    Attributes:
      chunk: codes per block of the mask: codes of a block see each other.
      past: a block sees this many codes before it,
      voice: and up to this many of a voice's prompt, which are kept for good.
    """

    chunk: int = 5
    past: int = 25
    voice: int = 0

    def held(self, codes: jax.Array, voice: jax.Array) -> jax.Array:
        """How many codes are kept after `codes`, of which the first `voice` are the voice's."""
        return jnp.minimum(codes, voice) + jnp.clip(codes - voice, 0, self.past)


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """Codes -> mel. The defaults are the released MOSS-Speech decoder; widths in channels.

    Attributes:
      vocab_size: rows of the code table (16384 codes and spares in the released model).
      input_size: width of the code embedding.
      mels: mel bins of the output (80).
      xvector_size: length of a speaker vector.
      ratio: mel frames per code; also the factor of the upsampling layer.
      lookahead: codes to the right that the look-ahead convolution sees.
      width, heads, ff_width, blocks: the conformer stack at code rate.
      up_blocks: conformer blocks at mel rate (a constant upstream).
      dropout: rate inside the conformer in training.
      chunk: codes per block when streaming; the estimator's block is `ratio` times as many frames.
      channels, head_dim, estimator_heads, transformers, mid_blocks: the velocity network.
      sigma_min: noise left at t = 1.
      condition_dropout: chance that a training item loses all its conditions.
      guidance: weight of classifier-free guidance.
    """

    vocab_size: int = 20480
    input_size: int = 512
    mels: int = 80
    xvector_size: int = 192
    ratio: int = 4
    lookahead: int = 3
    width: int = 512
    heads: int = 8
    ff_width: int = 2048
    blocks: int = 6
    up_blocks: int = 4
    dropout: float = 0.1
    chunk: int = 5
    channels: int = 256
    head_dim: int = 64
    estimator_heads: int = 8
    transformers: int = 4
    mid_blocks: int = 12
    sigma_min: float = 1e-6
    condition_dropout: float = 0.2
    guidance: float = 0.7

    def __post_init__(self):
        for field in dataclasses.fields(self):
            whole = values.LAYERS if field.name in _LAYERS else values.SIZE
            rate = values.Range(0, 1, below=True) if field.name in _RATES else values.NOT_NEGATIVE
            accepted = whole if field.type is int else rate
            values.number(getattr(self, field.name), f'flow config: {field.name}', accepted)
        if self.width % self.heads or self.width % 2:
            raise InputError(
                f'flow config: width {self.width} must be even and divisible by heads {self.heads}'
            )
        if self.mels % 2:
            raise InputError(f'flow config: mels is {self.mels}, it must be even')

    def context(self, *, streaming: bool, finalize: bool) -> Context:
        """The mode that upstream spells with these two flags."""
        return Context(self.chunk if streaming else None, 0 if finalize else self.lookahead)


def released() -> FlowConfig:
    """The released MOSS-Speech flow decoder (codec snapshot, `flow/config.yaml`)."""
    return FlowConfig()
