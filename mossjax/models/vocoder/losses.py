"""What a vocoder is trained for. All losses are means, float32, of sums over discriminators.

Least squares (arXiv 1611.04076) for both players; distances between activations and between
log-mels for the generator, as HiFi-GAN weighs them; upstream: `HiFiGan` of CosyVoice 2.
"""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.models.flow.mel import RATE
from mossjax.models.vocoder.discriminators import Judgement
from mossjax.ops import spectral

FLOOR = 1e-5  # of a mel magnitude, before the logarithm
UNKNOWN = -1.0  # f0 of a frame that nobody measured
# (window = n_fft, hop, bins) of a mel, samples at 24 kHz.
Scale = tuple[int, int, int]


def judging_loss(real: Sequence[Judgement], fake: Sequence[Judgement]) -> jax.Array:
    """The discriminators': (score - 1)^2 on recordings and score^2 on what was generated."""
    return sum(
        jnp.mean(jnp.square(_float32(r) - 1)) + jnp.mean(jnp.square(_float32(f)))
        for (r, _), (f, _) in zip(real, fake, strict=True)
    )


def adversarial_loss(fake: Sequence[Judgement]) -> jax.Array:
    """The generator's: (score - 1)^2 on what it made."""
    return sum(jnp.mean(jnp.square(_float32(score) - 1)) for score, _ in fake)


def feature_loss(real: Sequence[Judgement], fake: Sequence[Judgement]) -> jax.Array:
    """Mean absolute distance of every layer's activations, summed over layers."""
    return sum(
        jnp.mean(jnp.abs(_float32(a) - _float32(b)))
        for (_, seen), (_, found) in zip(real, fake, strict=True)
        for a, b in zip(seen, found, strict=True)
    )


def mel_loss(real: jax.Array, fake: jax.Array, scales: Sequence[Scale]) -> jax.Array:
    """Mean absolute distance of log-mels up to 12 kHz, (b, w) waves, mean over the scales."""
    return sum(
        jnp.mean(jnp.abs(log_mel(real, *scale) - log_mel(fake, *scale))) for scale in scales
    ) / len(scales)


def log_mel(wave: jax.Array, window: int, hop: int, bins: int) -> jax.Array:
    """(b, w) -> (b, w // hop, bins), frames centred between hops, ends reflected."""
    side = (window - hop) // 2
    spectrum = spectral.stft(
        _float32(wave), n_fft=window, hop=hop, window=spectral.hann(window), pad=(side, side)
    )
    magnitude = jnp.sqrt(spectral.power(spectrum) + 1e-9)
    return jnp.log(jnp.maximum(magnitude @ _filters(window, bins), FLOOR))


def f0_loss(f0: jax.Array, target: jax.Array) -> jax.Array:
    """Mean absolute distance in Hz over the frames that have a target, both (b, t)."""
    known = target > UNKNOWN
    distance = jnp.where(known, jnp.abs(_float32(f0) - jnp.where(known, target, 0)), 0)
    return jnp.sum(distance) / jnp.maximum(jnp.sum(known), 1)


@functools.cache
def _filters(window: int, bins: int) -> np.ndarray:
    return spectral.mel_filters(RATE, window, bins, 0.0, RATE / 2).astype(np.float32)


def _float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)
