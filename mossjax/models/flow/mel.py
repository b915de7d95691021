"""The log-mel that the flow decoder predicts and the vocoders read: 24 kHz, 50 frames a second.

Frame i lies around sample 480 i + 240, so the 4 i-th to (4 i + 3)-th frames belong to the 1920
samples of code i.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.errors import InputError
from mossjax.ops import spectral

RATE = 24000  # Hz
WINDOW, HOP = 1920, 480  # samples
PAD = (WINDOW - HOP) // 2
MELS = 80
F_MAX = 8000.0  # Hz
FLOOR = 1e-5  # of the mel magnitude, before the logarithm


@functools.cache
def filters() -> np.ndarray:
    """(961, 80) float32, Slaney scale and norm."""
    return spectral.mel_filters(RATE, WINDOW, MELS, 0.0, F_MAX).astype(np.float32)


def log_mel(wave: jax.Array) -> jax.Array:
    """(..., w) in [-1, 1] at 24 kHz -> (..., w // 480, 80): ln of the mel magnitude, >= ln 1e-5.

    The ends are reflected by 720 samples and frames are not centred (upstream: Matcha-TTS
    `mel_spectrogram`). Magnitude, not power.

    Raises:
      InputError: shorter than the reflection.
    """
    if wave.shape[-1] <= PAD:
        raise InputError(
            f'{wave.shape[-1]} samples at 24 kHz are too few for a mel; give more than {PAD} '
            '(30 ms)'
        )
    window = spectral.hann(WINDOW)
    spectrum = spectral.stft(wave, n_fft=WINDOW, hop=HOP, window=window, pad=(PAD, PAD))
    magnitude = jnp.sqrt(spectral.power(spectrum) + 1e-9)
    return jnp.log(jnp.maximum(magnitude @ filters(), FLOOR))
