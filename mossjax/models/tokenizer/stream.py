"""The tokenizer as a stream: 80 ms of sound in, a code out, with nothing worked out twice.

Code c of a 30 s piece depends on the samples before 1280 c + 1160 of that piece, so it comes out
with its own 80 ms. What is kept of the past: 360 samples, two mel frames, one frame behind the
first convolution, and the keys and values of the piece, at most 30 s: when the next piece begins,
at the same hard cut as offline, positions start again and nothing before is seen.

Only the dynamic range looks ahead: values are cut off 80 dB below the loudest one of the piece.
Where that maximum is known beforehand, codes are those of the whole recording. Otherwise it is the
maximum up to and with the code's own 80 ms: a rule about positions in the sound, so codes do not
depend on how it arrives, but they may differ from those of the whole until its loudest moment.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mossjax.models.stream import Piece, cleaned
from mossjax.models.tokenizer import mel, quantizer
from mossjax.models.tokenizer.config import TokenizerConfig
from mossjax.models.tokenizer.encoder import SpeechEncoder, Tokenizer
from mossjax.nn.param import scan_layers
from mossjax.ops import spectral
from mossjax.ops.activations import gelu
from mossjax.ops.attention import Mask

# A code's frames are those its last position sees first: the one before its 80 ms, not the last of
# them. That one begins this many samples before the code.
PAST = mel.HOP + mel.N_FFT // 2
NEVER = -1e9  # a maximum that nothing is below; finite, so that differences are


class State(NamedTuple):
    """Of b sessions.

    Attributes:
      samples: (b, 360), frames (b, 2, m), conv (b, 1, d): the last of what each step reads.
      keys, values: (b, l, s, n, h), a slot for each position of a piece.
      codes: (b,) int32 given so far.
      peak: (b,) loudest value of the piece so far. known: (b, p) of each piece, `NEVER` if not.
    """

    samples: jax.Array
    frames: jax.Array
    conv: jax.Array
    keys: jax.Array
    values: jax.Array
    codes: jax.Array
    peak: jax.Array
    known: jax.Array


class EncoderStream:
    """16 kHz samples (b, 1280 k) -> vectors before the codebook (b, k, d)."""

    def __init__(self, encoder: SpeechEncoder, config: TokenizerConfig):
        self.encoder, self.config = encoder, config
        self.block = config.stride
        self.codes = config.piece // config.stride  # of a piece

    def start(self, sessions: int, known: jax.Array | None = None) -> State:
        """Args:
          known: (b, p) `mel.loudest` of each session's first p pieces, `NEVER` where unknown; by
            default of all.
        """
        c, b = self.config, sessions
        cache = (b, c.layers, self.codes * c.pool, c.heads, c.d // c.heads)
        known = jnp.full((b, 1), NEVER) if known is None else jnp.asarray(known, jnp.float32)
        return State(
            jnp.zeros((b, PAST)), jnp.zeros((b, 2, c.mels)), jnp.zeros((b, 1, c.d)),
            jnp.zeros(cache), jnp.zeros(cache), jnp.zeros(b, jnp.int32), jnp.full(b, NEVER), known,
        )  # fmt: skip

    def step(self, state: State, piece: Piece) -> tuple[State, Piece]:
        """See `models.stream`. A piece is at most 30 s long."""
        c = self.config
        piece = cleaned(piece)
        b = len(piece.count)
        own = piece.values.reshape(b, -1, self.block)
        n = own.shape[1]
        if n > self.codes:
            raise ValueError(f'{n} codes in one piece, the longest has {self.codes}')
        codes = -(-piece.count // self.block)
        index = state.codes[:, None] + jnp.arange(n)  # of each code in its session
        first = index % self.codes == 0

        past, samples = _before(state.samples, own, codes)
        mirrored = own[:, :, mel.N_FFT // 2 : 0 : -1]
        mirrored = jnp.pad(mirrored, ((0, 0), (0, 0), (PAST - mirrored.shape[2], 0)))
        past = jnp.where(first[..., None], mirrored, past)
        spectrum = spectral.stft(
            jnp.concatenate([past, own], axis=2), n_fft=mel.N_FFT, hop=mel.HOP, window=mel.WINDOW,
            pad=(0, 0),
        )  # fmt: skip
        log = mel.log_power(spectrum, c.mels)
        before = first[..., None] & (jnp.arange(log.shape[2]) == 0)  # no frame is before the first
        peaks, peak = self._peaks(state, jnp.where(before[..., None], NEVER, log), index, codes)
        features = jnp.where(before[..., None], 0, mel.normalised(log, peaks))

        past, frames = _before(state.frames, features, codes)
        past = jnp.where(first[..., None, None], 0, past)
        x = gelu(_windows(self.encoder.conv1, past, features))
        x = jnp.where(before[..., None], 0, x)
        past, conv = _before(state.conv, x, codes)
        past = jnp.where(first[..., None, None], 0, past)
        x = gelu(_windows(self.encoder.conv2, past, x))
        x, keys, values = self._layers(state, x.reshape(b, -1, c.d), index, codes)
        vectors = jnp.mean(x.reshape(b, n, c.pool, c.d), axis=2)
        state = State(
            samples, frames, conv, keys, values, state.codes + codes, peak, state.known
        )
        return state, Piece(vectors, codes, piece.last)

    def _peaks(self, state, log, index, codes) -> tuple[jax.Array, jax.Array]:
        """(b, n) the loudest of each code's piece as far as it is known, and the last one."""
        here = index // self.codes
        own = jnp.max(log, axis=(2, 3))
        asked = jnp.minimum(here, state.known.shape[1] - 1)
        known = jnp.take_along_axis(state.known, asked, axis=1)
        own = jnp.maximum(own, jnp.where(asked == here, known, NEVER))
        # Code j hears codes i <= j of the same piece; column 0 is what was carried.
        own = jnp.concatenate([state.peak[:, None], own], axis=1)
        at = jnp.concatenate([((state.codes - 1) // self.codes)[:, None], here], axis=1)
        order = jnp.arange(own.shape[1])
        heard = (order <= order[:, None]) & (at[:, None] == at[..., None])
        peaks = jnp.max(jnp.where(heard, own[:, None], NEVER), axis=2)
        return peaks[:, 1:], jnp.take_along_axis(peaks, codes[:, None], axis=1)[:, 0]

    def _layers(self, state, x, index, codes):
        """x (b, t, d) behind the convolutions through all layers; and the keys and values."""
        pool, b = self.config.pool, len(x)
        slots = state.keys.shape[2]
        place = (pool * (index % self.codes))[..., None] + jnp.arange(pool)
        place = place.reshape(b, -1)  # of each position in its piece
        pieces = jnp.repeat(index // self.codes, pool, axis=1)
        # The slots of the piece that the session is in; those further on are of an older one.
        now = state.codes // self.codes
        filled = jnp.arange(slots) < (pool * (state.codes % self.codes))[:, None]
        cached = jnp.where(filled, now[:, None], -1)
        mask = Mask(
            causal=True, q_offset=slots, q_segments=pieces,
            kv_segments=jnp.concatenate([cached, pieces], axis=1),
        )  # fmt: skip
        exists = jnp.repeat(jnp.arange(index.shape[1]) < codes[:, None], pool, axis=1)
        to = jnp.where(exists, place, slots)  # padding falls off the end
        rows = jnp.arange(b)[:, None]
        x = x + jax.lax.stop_gradient(self.encoder.positions.table[...])[place]

        def body(layer, carry, i):
            x, keys, values = carry
            x, k, v = layer.after(x, mask, keys[:, i], values[:, i])
            keys = keys.at[rows, i, to].set(k, mode='drop')
            return (x, keys, values.at[rows, i, to].set(v, mode='drop')), None

        every = jnp.arange(self.config.layers)
        carry = (x, state.keys, state.values)
        return scan_layers(self.encoder.layers, carry, body, every)[0]


class TokenizerStream(EncoderStream):
    """16 kHz samples (b, 1280 k) -> codes (b, k) int32."""

    def __init__(self, tokenizer: Tokenizer, config: TokenizerConfig):
        super().__init__(tokenizer.encoder, config)
        self.codebook = tokenizer.codebook

    def step(self, state: State, piece: Piece) -> tuple[State, Piece]:
        """See `models.stream`. A piece is at most 30 s long."""
        state, out = super().step(state, piece)
        return state, out._replace(values=quantizer.nearest(out.values, self.codebook[...]))


def _before(kept, own, codes) -> tuple[jax.Array, jax.Array]:
    """What stands before each code, and what is to be kept of it all.

    Args:
      kept: (b, r, ...) the last places before. own: (b, n, s, ...) of each code, r <= s.

    Returns:
      (b, n, r, ...) and, behind the last code that exists, (b, r, ...).
    """
    r = kept.shape[1]
    ends = jnp.concatenate([kept[:, None], own[:, :, own.shape[2] - r :]], axis=1)
    return ends[:, :-1], ends[jnp.arange(len(ends)), codes]


def _windows(conv, past, own) -> jax.Array:
    """A causal convolution of (b, n, s, c) where `past` (b, n, left, c) stands for the padding."""
    x = jnp.concatenate([past, own], axis=2)
    b, n = x.shape[:2]
    y = conv.unpadded(x.reshape(b * n, *x.shape[2:]))
    return y.reshape(b, n, *y.shape[1:])
