"""The short Fourier transforms at both ends of the generator, as small matrix products.

n_fft is 16: a matrix of 16 x 18 does a frame's transform faster than any FFT, on every device, and
takes real and imaginary parts side by side as the network has them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.ops import spectral
from mossjax.ops.conv import conv1d, overlap_add


@functools.cache
def _matrices(n_fft: int) -> tuple[np.ndarray, np.ndarray]:
    """Analysis (n_fft, 2 bins) and synthesis (2 bins, n_fft), periodic Hann window included."""
    bins = np.arange(n_fft // 2 + 1)
    angle = 2 * np.pi * np.outer(np.arange(n_fft), bins) / n_fft
    window = spectral.hann(n_fft)
    forward = np.concatenate([np.cos(angle), -np.sin(angle)], axis=1) * window[:, None]
    # A real signal has every bin twice but the first and the last, which have no imaginary part.
    weight = np.where((bins == 0) | (bins == n_fft // 2), 1, 2) / n_fft
    back = np.concatenate([np.cos(angle) * weight, -np.sin(angle) * weight], axis=1).T * window
    return forward.astype(np.float32), back.astype(np.float32)


def mirror(x: jax.Array, lengths: jax.Array, side: int) -> jax.Array:
    """Reflects (b, w) rows at sample 0 and at their own last sample; zeros behind.

    Returns:
      (b, w + 2 * side): row i has lengths[i] + 2 * side samples. Rows of `side` samples or fewer
      have nothing to reflect and get zeros.
    """
    x = jnp.where(jnp.arange(x.shape[1]) < lengths[:, None], x, 0)
    head = x[:, side:0:-1]
    padded = jnp.concatenate([head, x, jnp.zeros_like(head)], axis=1)
    at = lengths[:, None] - 2 - jnp.arange(side)
    tail = jnp.where(at < 0, 0, jnp.take_along_axis(x, jnp.maximum(at, 0), axis=1))
    put = jax.vmap(lambda row, end, i: jax.lax.dynamic_update_slice(row, end, (i,)))
    return put(padded, tail, lengths + side)


def analysis(wave: jax.Array, lengths: jax.Array, *, n_fft: int, hop: int) -> jax.Array:
    """(b, w) wave -> (b, w / hop + 1, 2 * bins): real parts, then imaginary ones.

    Frames are centred, the ends reflected. Frames after the first lengths / hop + 1 are zero.
    """
    forward = jnp.asarray(_matrices(n_fft)[0], wave.dtype)
    blocks = mirror(wave, lengths, n_fft // 2)
    blocks = blocks.reshape(len(wave), -1, hop)  # a frame is n_fft / hop of them
    frames = conv1d(blocks, forward.reshape(n_fft // hop, hop, -1))
    return jnp.where(_exist(frames.shape[1], lengths, hop), frames, 0)


def synthesis(spectrum: jax.Array, lengths: jax.Array, *, n_fft: int, hop: int) -> jax.Array:
    """Inverse of `analysis` in the least-squares sense, (b, f, 2 * bins) -> (b, hop * (f - 1)).

    The imaginary parts of the outer bins are ignored; samples past `lengths` are zero.
    """
    back = jnp.asarray(_matrices(n_fft)[1], spectrum.dtype)
    window = jnp.asarray(spectral.hann(n_fft), spectrum.dtype)
    exist = _exist(spectrum.shape[1], lengths, hop)
    wave = overlap_add(jnp.where(exist, spectrum @ back, 0), hop)
    weight = overlap_add(jnp.where(exist, jnp.square(window), 0), hop)
    wave, weight = (x[:, n_fft // 2 : -(n_fft // 2)] for x in (wave, weight))
    inside = jnp.arange(wave.shape[1]) < lengths[:, None]
    return jnp.where(inside, wave, 0) / jnp.where(inside, weight, 1)


def _exist(frames: int, lengths: jax.Array, hop: int) -> jax.Array:
    return (jnp.arange(frames) <= (lengths // hop)[:, None])[..., None]
