"""Short-time Fourier transforms and mel filter banks: what every log-mel in the project needs."""

import jax
import jax.numpy as jnp
import numpy as np

# Slaney's mel scale: linear below 1 kHz (3 mel per 200 Hz), 27 steps per factor 6.4 above.
_HZ_PER_MEL = 200.0 / 3.0
_BREAK_HZ, _BREAK_MEL = 1000.0, 15.0
_LOG_STEP = np.log(6.4) / 27.0


def hann(size: int) -> np.ndarray:
    """Periodic Hann window (size,), float64."""
    return 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(size) / size)


def hz_to_mel(hz) -> np.ndarray:
    """Hz to Slaney mel, float64."""
    hz = np.asarray(hz, np.float64)
    above = _BREAK_MEL + np.log(np.maximum(hz, _BREAK_HZ) / _BREAK_HZ) / _LOG_STEP
    return np.where(hz < _BREAK_HZ, hz / _HZ_PER_MEL, above)


def mel_to_hz(mel) -> np.ndarray:
    """Slaney mel to Hz, float64."""
    mel = np.asarray(mel, np.float64)
    above = _BREAK_HZ * np.exp(_LOG_STEP * (mel - _BREAK_MEL))
    return np.where(mel < _BREAK_MEL, mel * _HZ_PER_MEL, above)


def mel_filters(rate: float, n_fft: int, n_mels: int, f_min: float, f_max: float) -> np.ndarray:
    """Triangles of equal area between points equally spaced in mel (librosa's default bank).

    Args:
      rate: sampling rate in Hz. f_min, f_max: outer corners in Hz.

    Returns:
      (n_fft // 2 + 1, m) float64; cast to float32 where it meets a spectrum.
    """
    bins = np.arange(n_fft // 2 + 1) * (rate / n_fft)
    corners = mel_to_hz(np.linspace(hz_to_mel(f_min), hz_to_mel(f_max), n_mels + 2))
    low, centre, high = corners[:-2], corners[1:-1], corners[2:]
    rising = (bins[:, None] - low) / (centre - low)
    falling = (high - bins[:, None]) / (high - centre)
    return np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (high - low))


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
