"""The excitation: sines at the multiples of f0, and noise. Upstream: `SineGen2`.

A sine's phase is the integral of its frequency; after a few seconds it is thousands of cycles, of
which only the fraction matters and which float32 has no digits left for. Here the phase at the
middle of each frame is an integer that counts 2^-32 cycles and wraps around by itself: sums are
exact, in any order and from any frame on, whatever the length.
"""

import jax
import jax.numpy as jnp

from mossjax.models.flow.mel import HOP, RATE
from mossjax.models.vocoder.hift.config import HiftConfig

FRAMES = RATE // HOP  # a second
_FINE = 25  # bits behind the point of a frequency below FRAMES Hz, in a 32-bit integer


def turns(f0: jax.Array) -> jax.Array:
    """(b, t) Hz -> (b, t) int32, the phase each frame advances by: f0 / 50 cycles, in 2^-32.

    Whole cycles drop out, so 50 Hz may be subtracted from f0 as often as it goes; both that and
    the scaling are exact in float32. What remains is a division of integers.
    """
    rest = f0 - FRAMES * jnp.floor(f0 / FRAMES)
    fine = (rest * 2.0**_FINE).astype(jnp.int32)
    # fine * 128 / 50 without overflow of anything but whole cycles
    up, down = 1 << (32 - _FINE), FRAMES
    return (fine // down) * up + (fine % down) * up // down


def phases(f0: jax.Array, harmonics: int, reached: jax.Array | int = 0) -> jax.Array:
    """Where the sines stand. Only the fraction has a meaning.

    Phases are linear between the middles of frames. The first and the last half frame have none to
    go to or come from: there the phase stands still.

    Args:
      f0: (b, t) Hz, 0 past the end.
      reached: (b,) int32 sum of the `turns` of all frames before these.

    Returns:
      (b, h, 480 t) cycles.
    """
    b, t = f0.shape
    order = jnp.arange(1, harmonics + 1)[:, None]
    middle = jnp.cumsum(turns(f0), axis=1, dtype=jnp.int32) + jnp.reshape(reached, (-1, 1))
    middle = middle[:, None] * order  # wraps, as the sums do
    middle = middle.astype(jnp.float32) * 2.0**-32
    rate = f0[:, None] * (order / RATE)  # cycles a sample
    rate = rate - jnp.floor(rate)
    # Between middles u - 1 and u, for u = 0 .. t.
    start = jnp.concatenate([middle[..., :1], middle], axis=-1)
    slope = jnp.pad(rate[..., 1:], ((0, 0), (0, 0), (1, 1)))
    within = jnp.arange(HOP) + 0.5
    cycles = start[..., None] + slope[..., None] * within
    return cycles.reshape(b, harmonics, HOP * (t + 1))[..., HOP // 2 : -HOP // 2]


def excitation(
    config: HiftConfig, f0: jax.Array, noise: jax.Array, reached: jax.Array | int = 0
) -> jax.Array:
    """Sines and noise before they are merged, (b, h, 480 t), h = 1 + overtones.

    Args:
      f0: (b, t) Hz, 0 past the end. noise: (b or 1, h, 480 t) standard normal.
      reached: of `phases`.
    """
    cycles = phases(f0, config.harmonics + 1, reached)
    sines = config.sine * jnp.sin(2 * jnp.pi * (cycles - jnp.round(cycles)))
    voiced = jnp.repeat(f0 > config.voiced, HOP, axis=1)[:, None]
    return jnp.where(voiced, sines, 0) + noise * jnp.where(
        voiced, config.noise, config.sine / 3
    )


def noise(config: HiftConfig, key: jax.Array, frames: int, start: jax.Array | int = 0) -> jax.Array:
    """(1, h, 480 * frames) standard normal numbers of the frames from `start` on.

    A sample's numbers depend on the key and on its absolute place only: a cut of the noise of a
    longer signal is the noise of the cut.
    """
    h = config.harmonics + 1

    def frame(i):
        return jax.random.normal(jax.random.fold_in(key, i), (h, HOP))

    drawn = jax.vmap(frame, out_axes=1)(start + jnp.arange(frames))
    return drawn.reshape(1, h, frames * HOP)
