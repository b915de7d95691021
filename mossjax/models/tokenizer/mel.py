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


@functools.cache
def _filters(mels: int) -> np.ndarray:
    return spectral.mel_filters(RATE, N_FFT, mels, 0.0, F_MAX).astype(np.float32)


def log_mel(audio: jax.Array, mels: int, frames: jax.Array | None = None) -> jax.Array:
    """Log-mel of Whisper's feature extractor, per row.

    Args:
      audio: (b, w) float32 at 16 kHz, w a multiple of 160 and more than 200.
      mels: number of bands m.
      frames: (b,) how many frames of each row set its dynamic range; all of them by default.

    Returns:
      (b, w / 160, m) float32: (max(log10 power, loudest - 8) + 4) / 4.
    """
    if audio.shape[-1] % HOP:
        raise ValueError(f'{audio.shape[-1]} samples are not a multiple of the hop, {HOP}')
    spectrum = spectral.stft(
        audio, n_fft=N_FFT, hop=HOP, window=spectral.hann(N_FFT).astype(np.float32),
        pad=(N_FFT // 2, RIGHT),
    )
    log = jnp.log10(jnp.maximum(spectral.power(spectrum) @ _filters(mels), 1e-10))
    peak = jnp.max(log, axis=-1)
    if frames is not None:
        peak = jnp.where(jnp.arange(peak.shape[1]) < frames[:, None], peak, -jnp.inf)
    floor = jnp.max(peak, axis=-1)[:, None, None] - 8.0
    return (jnp.maximum(log, floor) + 4.0) / 4.0
