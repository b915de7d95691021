"""Short-time Fourier transforms and mel filter banks: what every log-mel in the project needs."""

import jax
import jax.numpy as jnp
import numpy as np


def hann(size: int) -> np.ndarray:
    """Periodic Hann window (size,), float64."""
    return 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(size) / size)


def mel_filters(rate: float, n_fft: int, n_mels: int, f_min: float, f_max: float) -> np.ndarray:
    """Triangles of equal area between points equally spaced in mel (Slaney's scale and norm).

    Args:
      rate: sampling rate in Hz. f_min, f_max: outer corners in Hz.

    Returns:
      (n_fft // 2 + 1, m) float64; cast to float32 where it meets a spectrum.
    """
    import librosa  # takes a second to import, and not everything needs a mel

    return librosa.filters.mel(
        sr=rate, n_fft=n_fft, n_mels=n_mels, fmin=f_min, fmax=f_max, dtype=np.float64
    ).T


def frames(x: jax.Array, size: int, hop: int) -> jax.Array:
    """Overlapping cuts of the last axis: (..., w) -> (..., 1 + (w - size) // hop, size).

    Built from shifted views of hop-sized blocks: a gather would be several times slower on a CPU.
    """
    count = 1 + (x.shape[-1] - size) // hop
    blocks = -(-size // hop)
    short = (count - 1 + blocks) * hop - x.shape[-1]
    pad = [(0, 0)] * (x.ndim - 1) + [(0, max(short, 0))]
    x = jnp.pad(x, pad)[..., : (count - 1 + blocks) * hop]
    x = x.reshape(*x.shape[:-1], count - 1 + blocks, hop)
    shifted = [x[..., i : i + count, :] for i in range(blocks)]
    return jnp.concatenate(shifted, axis=-1)[..., :size]


def stft(
    x: jax.Array, *, n_fft: int, hop: int, window: np.ndarray, pad: tuple[int, int],
    mode: str = 'reflect',
) -> jax.Array:
    """Windowed Fourier transforms of x (..., w), w > the padding when it reflects.

    Args:
      n_fft, hop: samples. window: (n_fft,).
      pad: samples added left and right; (n_fft // 2, n_fft // 2) centres frame t at sample t * hop.
      mode: how, as in `jnp.pad`; 'reflect' does not repeat the edge sample.

    Returns:
      complex (..., 1 + (w + sum(pad) - n_fft) // hop, n_fft // 2 + 1), unscaled.
    """
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [pad], mode=mode)
    return jnp.fft.rfft(frames(x, n_fft, hop) * jnp.asarray(window, x.dtype), axis=-1)


def power(spectrum: jax.Array) -> jax.Array:
    """|X|^2, real."""
    return jnp.square(spectrum.real) + jnp.square(spectrum.imag)
