"""Log-mel -> waveform without a trained vocoder: fast Griffin-Lim (Perraudin et al., 2013).

The magnitude spectrum is fitted to the mel by non-negative least squares, the phase by alternating
projections with momentum. Frames that do not exist are silent in every projection, so a padded mel
gives the waveform of the exact one.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.models.flow.mel import HOP, PAD, WINDOW, filters
from mossjax.ops import spectral
from mossjax.ops.conv import overlap_add

ITERATIONS = 32
MOMENTUM = 0.99
FIT_STEPS = 30


def magnitudes(log_mel: jax.Array) -> jax.Array:
    """(b, t, 80) log-mel -> (b, t, 961) magnitudes S >= 0 with S @ filters ~ exp(log_mel).

    Multiplicative updates (Lee and Seung) from the filters' transpose: they keep S positive and
    never increase the squared error.
    """
    bank = jnp.asarray(filters(), log_mel.dtype)
    mel = jnp.exp(log_mel)
    toward = mel @ bank.T

    def step(_, s):
        return s * toward / jnp.maximum((s @ bank) @ bank.T, 1e-12)

    start = toward / jnp.maximum(jnp.sum(bank, axis=0) @ bank.T, 1e-12)
    return jax.lax.fori_loop(0, FIT_STEPS, step, start)


def griffin_lim(
    log_mel: jax.Array, lengths: jax.Array, key: jax.Array, *, iterations: int = ITERATIONS
) -> jax.Array:
    """(b, t, 80) natural-log mel and (b,) frames that exist -> (b, 480 t) at 24 kHz.

    The first phase is drawn from the key frame by frame: a row's waveform depends neither on the
    padding nor on the other rows. Samples beyond 480 * length are zero.
    """
    t = log_mel.shape[1]
    window = jnp.asarray(spectral.hann(WINDOW), log_mel.dtype)
    exists = (jnp.arange(t) < lengths[:, None])[..., None]
    target = jnp.where(exists, magnitudes(log_mel), 0)
    weight = overlap_add(jnp.where(exists, jnp.square(window), 0), HOP)
    # The outermost samples are seen by the window's foot only; they are cut off in the end.
    weight = jnp.maximum(weight, 1e-2)

    def wave(spectrum):
        return overlap_add(jnp.fft.irfft(spectrum, WINDOW) * window, HOP) / weight

    def step(_, carry):
        spectrum, previous = carry
        frames = spectral.frames(wave(spectrum), WINDOW, HOP) * window
        rebuilt = jnp.where(exists, jnp.fft.rfft(frames), 0)
        ahead = rebuilt + MOMENTUM * (rebuilt - previous)
        return target * ahead / jnp.maximum(jnp.abs(ahead), 1e-12), rebuilt

    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(t))
    phase = jax.vmap(lambda k: jax.random.uniform(k, (WINDOW // 2 + 1,), target.dtype))(keys)
    first = target * jnp.exp(2j * np.pi * phase).astype(jnp.complex64)
    spectrum, _ = jax.lax.fori_loop(0, iterations, step, (first, jnp.zeros_like(first)))
    samples = wave(spectrum)[:, PAD : PAD + HOP * t]
    return jnp.where(jnp.arange(HOP * t) < HOP * lengths[:, None], samples, 0)
