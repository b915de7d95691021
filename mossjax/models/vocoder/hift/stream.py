"""The vocoder as a stream: mel frames in, samples out, 160 ms behind.

The network looks both ways, further than anyone wants to wait. Each step runs it on a window: the
frames still to be spoken, with as many before them as can be heard in them, and the new ones. The
last 8 frames of a window lack most of what follows, so they are held back; the next window speaks
them again and the two are cross-faded.

What a window cannot see comes from before: each frame's pitch, which is final once five more frames
are known; the phase of the sines in front of the window, an integer that wraps (`source`); the
noise, drawn by absolute frame. A stream's end is the end of its last window, as offline.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.models.flow.mel import HOP
from mossjax.models.stream import Piece, blockwise
from mossjax.models.vocoder.hift import f0, source
from mossjax.models.vocoder.hift.config import HiftConfig
from mossjax.models.vocoder.hift.model import Hift

HELD = 8  # frames
BLOCKS = 20, 40, 100  # frames of the first step, of the second, of all others

# () -> weights of the new window and of the old one, from the first sample held back on
Fade = Callable[[], tuple[np.ndarray, np.ndarray]]


def raised_cosine() -> tuple[np.ndarray, np.ndarray]:
    """Over 40 ms, the sum is 1.

    There the old window hears 6 frames or more of what follows and still has the right pitch; its
    last 5 frames have another one, and sines out of phase would cancel.
    """
    samples = 2 * HOP
    rising = np.square(np.sin(np.pi / 2 * (np.arange(samples) + 0.5) / samples))
    return rising, 1 - rising


def hamming() -> tuple[np.ndarray, np.ndarray]:
    """Upstream's, over all that is held back; the sum is 1.08: what is faded is 8 % louder."""
    window = np.hamming(2 * HELD * HOP)
    return window[: HELD * HOP], window[HELD * HOP :]


def reach(config: HiftConfig) -> int:
    """Frames to each side of a sample that it depends on, the pitch's own context left out."""
    rates = np.cumprod(config.rates)  # positions of a frame, of each stage

    def of_blocks(kernels, i):
        spread = sum(d + 1 for d in config.dilations)  # a dilated convolution and a plain one each
        return max(kernels) // 2 * spread / rates[i]

    fine = rates[-1]
    total = 3.0  # of the first convolution
    for i, kernel in enumerate(config.kernels):
        # A sine's phase is wrong for half a frame where it has no frame before it.
        sines = 0.5 + of_blocks(config.source_kernels[i : i + 1], i) + (
            fine // rates[i] + config.n_fft // config.hop
        ) / fine
        rises = total + math.ceil(kernel / config.rates[i]) * config.rates[i] / rates[i]
        total = of_blocks(config.block_kernels, i) + max(sines, rises)
    return math.ceil(total + (3 + 1 + config.n_fft // config.hop) / fine)


class State(NamedTuple):
    """Of b sessions, k = `reach` + 8 frames each.

    Attributes:
      mel: (b, k, m), f0: (b, k) Hz, of the last frames, the oldest first. kept: (b,) of those that
        exist. frames: (b,) all so far.
      phase: (b,) int32 reached before the first of them. tail: (b, 3840) samples held back.
      key: (b, ...) data of the key that the session's noise is drawn from.
    """

    mel: jax.Array
    f0: jax.Array
    kept: jax.Array
    frames: jax.Array
    phase: jax.Array
    tail: jax.Array
    key: jax.Array


class HiftStream:
    """Natural-log mel (b, t, m) -> 24 kHz samples, 480 a frame.

    The state does not depend on the block: a session may go on in longer blocks, which cost less a
    second.
    """

    def __init__(self, model: Hift, block: int, *, fade: Fade = raised_cosine):
        """Args:
          block: frames of a step, 8 or more. fade: `raised_cosine` or `hamming`.
        """
        if block < HELD:
            raise ValueError(f'a block of {block} frames, {HELD} are held back')
        self.model, self.block, self.past = model, block, reach(model.config)
        new, old = fade()
        rest = (0, HELD * HOP - len(new))  # where nothing of the old window is left
        self.rising = jnp.asarray(np.pad(new, rest, constant_values=1), jnp.float32)
        self.falling = jnp.asarray(np.pad(old, rest), jnp.float32)

    def start(self, sessions: int, key: jax.Array | None = None) -> State:
        """Args:
          key: of the noise, one for all or (b,); `jax.random.key(0)` by default.
        """
        b, k = sessions, self.past + HELD
        key = jax.random.key(0) if key is None else key
        data = jax.random.key_data(jnp.broadcast_to(key, (b,)))
        kept, frames, phase = (jnp.zeros(b, jnp.int32) for _ in range(3))
        return State(
            jnp.zeros((b, k, self.model.config.mels)), jnp.zeros((b, k)), kept, frames, phase,
            jnp.zeros((b, HELD * HOP)), data,
        )  # fmt: skip

    def step(self, state: State, piece: Piece) -> tuple[State, Piece]:
        """See `models.stream`. One run of the network a block."""
        return blockwise(self._window, self.block, state, piece)

    def _window(self, state: State, piece: Piece) -> tuple[State, Piece]:
        kept, n = state.kept, self.block
        length = kept + piece.count
        put = jax.vmap(lambda x, new, at: jax.lax.dynamic_update_slice_in_dim(x, new, at, 0))
        mel = put(jnp.pad(state.mel, ((0, 0), (0, n), (0, 0))), piece.values, kept)
        pitch = self.model.pitch(mel, length)
        final = jnp.arange(mel.shape[1]) < kept[:, None] - f0.LAYERS
        pitch = jnp.where(final, jnp.pad(state.f0, ((0, 0), (0, n))), pitch)
        excited = self.model.source(pitch, self._noise(state, mel.shape[1]), state.phase)
        wave = self.model.wave(mel, excited, length)

        # The 8 frames held back, and the new ones.
        speaks = jnp.maximum(kept - HELD, 0)
        wave = _cut(wave, HOP * speaks, HOP * (n + HELD))
        faded = wave[:, : HELD * HOP] * self.rising + state.tail * self.falling
        # With nothing new known, what was held back stands; at the start nothing was.
        faded = jnp.where((piece.count == 0)[:, None], state.tail, faded)
        faded = jnp.where((kept == 0)[:, None], wave[:, : HELD * HOP], faded)
        wave = jnp.concatenate([faded, wave[:, HELD * HOP :]], axis=1)
        said = jnp.maximum(length - speaks - jnp.where(piece.last, 0, HELD), 0)
        return self._next(state, mel, pitch, length, _cut(wave, HOP * said, HELD * HOP)), Piece(
            wave, HOP * said, piece.last
        )

    def _noise(self, state: State, frames: int) -> jax.Array:
        def draw(key, first):
            key = jax.random.wrap_key_data(key)
            return source.noise(self.model.config, key, frames, first)[0]

        return jax.vmap(draw)(state.key, state.frames - state.kept)

    def _next(self, state: State, mel, pitch, length, tail) -> State:
        """Without the frames that nothing to come can hear."""
        k = state.mel.shape[1]
        gone = jnp.maximum(length - k, 0)
        turns = jnp.where(jnp.arange(mel.shape[1]) < gone[:, None], source.turns(pitch), 0)
        return State(
            _cut(mel, gone, k), _cut(pitch, gone, k), length - gone,
            state.frames + length - state.kept,
            state.phase + jnp.sum(turns, axis=1, dtype=jnp.int32),  # wraps
            tail, state.key,
        )  # fmt: skip


def _cut(x: jax.Array, start: jax.Array, size: int) -> jax.Array:
    """(b, t, ...) -> (b, size, ...) from each row's own start."""
    return jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, size, 0))(x, start)
