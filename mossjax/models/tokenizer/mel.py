"""Whisper's log-mel features, computed on the device for a whole batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.ops import spectral

RATE = 16000  # Hz
N_FFT = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms
F_MAX = 8000.0  # Hz
# Reflection on the right reaches this far: the frame that Whisper computes and drops is left out.
RIGHT = N_FFT // 2 - HOP
WINDOW = spectral.hann(N_FFT).astype(np.float32)


@functools.cache
def _filters(mels: int) -> np.ndarray:
    return spectral.mel_filters(RATE, N_FFT, mels, 0.0, F_MAX).astype(np.float32)


def log_power(spectrum: jax.Array, mels: int) -> jax.Array:
    """(..., 201) complex -> (..., m): log10 of the mel power, >= -10."""
    return jnp.log10(jnp.maximum(spectral.power(spectrum) @ _filters(mels), 1e-10))


def normalised(log: jax.Array, peak: jax.Array) -> jax.Array:
    """(..., t, m) `log_power` and its loudest value (...) -> what the network reads."""
    return (jnp.maximum(log, peak[..., None, None] - 8.0) + 4.0) / 4.0


def _log_of(audio: jax.Array, mels: int) -> jax.Array:
    """(b, w), w a multiple of 160 and more than 200 -> (b, w / 160, m)."""
    if audio.shape[-1] % HOP:
        raise ValueError(f'{audio.shape[-1]} samples are not a multiple of the hop, {HOP}')
    spectrum = spectral.stft(audio, n_fft=N_FFT, hop=HOP, window=WINDOW, pad=(N_FFT // 2, RIGHT))
    return log_power(spectrum, mels)


def _peak(log: jax.Array, frames: jax.Array | None) -> jax.Array:
    peak = jnp.max(log, axis=-1)
    if frames is not None:
        peak = jnp.where(jnp.arange(peak.shape[1]) < frames[:, None], peak, -jnp.inf)
    return jnp.max(peak, axis=-1)


def loudest(audio: jax.Array, mels: int, frames: jax.Array | None = None) -> jax.Array:
    """(b,) the largest log10 mel power of each row, which sets its dynamic range; see `log_mel`."""
    return _peak(_log_of(audio, mels), frames)


def log_mel(audio: jax.Array, mels: int, frames: jax.Array | None = None) -> jax.Array:
    """Log-mel of Whisper's feature extractor, per row.

    Args:
      audio: (b, w) float32 at 16 kHz, w a multiple of 160 and more than 200.
      mels: number of bands m.
      frames: (b,) how many frames of each row set its dynamic range; all of them by default.

    Returns:
      (b, w / 160, m) float32: (max(log10 power, loudest - 8) + 4) / 4.
    """
    log = _log_of(audio, mels)
    return normalised(log, _peak(log, frames))
