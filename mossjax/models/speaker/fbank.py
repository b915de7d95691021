"""Kaldi's log mel filter bank at 16 kHz, as the speaker encoder was trained on it.

Differs from Whisper's and the decoder's mels in everything: frames start at the first sample, each
is freed of its mean and pre-emphasised by itself, Povey's window, triangles in another mel.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.errors import InputError
from mossjax.ops import spectral

RATE = 16000  # Hz
WINDOW, HOP = 400, 160  # samples: 25 and 10 ms
N_FFT = 512
MELS = 80
F_MIN = 20.0  # Hz
EMPHASIS = 0.97
FLOOR = np.float32(2.0**-23)  # of the energy, before the logarithm


def _mel(hz):
    return 1127.0 * np.log1p(np.asarray(hz) / 700.0)


@functools.cache
def filters() -> np.ndarray:
    """(257, 80) float32: triangles between points equally spaced in mel, linear in mel."""
    corners = np.linspace(_mel(F_MIN), _mel(RATE / 2), MELS + 2)
    low, centre, high = corners[:-2], corners[1:-1], corners[2:]
    bins = _mel(np.arange(N_FFT // 2 + 1) * (RATE / N_FFT))[:, None]
    rising, falling = (bins - low) / (centre - low), (high - bins) / (high - centre)
    weights = np.maximum(0.0, np.minimum(rising, falling))
    weights[-1] = 0.0  # Kaldi has no bin at the Nyquist frequency
    return weights.astype(np.float32)


@functools.cache
def window() -> np.ndarray:
    """(400,) float32, Povey's: a symmetric Hann to the power 0.85."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / (WINDOW - 1))
    return (hann**0.85).astype(np.float32)


def frame_count(samples: int) -> int:
    """Whole windows in this many samples at 16 kHz."""
    return max(0, 1 + (samples - WINDOW) // HOP)


def fbank(wave: jax.Array) -> jax.Array:
    """(..., w) in [-1, 1] at 16 kHz -> (..., 1 + (w - 400) // 160, 80) natural logarithms.

    No dither, no scaling to 16-bit integers, the mean over time still in it.

    Raises:
      InputError: shorter than a window.
    """
    if wave.shape[-1] < WINDOW:
        raise InputError(
            f'{wave.shape[-1]} samples at 16 kHz are too few for a filter bank; give {WINDOW} '
            '(25 ms) or more'
        )
    x = spectral.frames(wave, WINDOW, HOP)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x - EMPHASIS * jnp.concatenate([x[..., :1], x[..., :-1]], axis=-1)
    spectrum = jnp.fft.rfft(x * window(), N_FFT)
    energy = spectral.power(spectrum) @ filters()
    return jnp.log(jnp.maximum(energy, FLOOR))
