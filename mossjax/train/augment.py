"""Distortions of 16 kHz training audio, made on the device inside the training step.

Each is a function of arrays and a key with fixed shapes, so a step stays one compiled program and
batch i is distorted the same way whenever it is seen again.
"""

import jax
import jax.numpy as jnp

PHONE_HOP = 320  # samples per frame label, 20 ms


def delay(audio: jax.Array, samples: jax.Array, most: int) -> jax.Array:
    """Row i of audio (b, w) starts `samples[i]` <= most later, after silence; the end is cut."""
    padded = jnp.pad(audio, ((0, 0), (most, 0)))

    def cut(row, by):
        return jax.lax.dynamic_slice(row, (most - by,), (audio.shape[1],))

    return jax.vmap(cut)(padded, samples)


def delay_labels(labels: jax.Array, samples: jax.Array, hop: int = PHONE_HOP) -> jax.Array:
    """Frame labels (b, t) of audio delayed by so many samples, to the nearest frame; -1 before."""
    source = jnp.arange(labels.shape[1]) - (samples[:, None] + hop // 2) // hop
    moved = jnp.take_along_axis(labels, jnp.maximum(source, 0), axis=1)
    return jnp.where(source >= 0, moved, -1)


def gain(audio: jax.Array, key: jax.Array, low_db: float, high_db: float) -> jax.Array:
    """Each row louder or softer by a uniform number of decibels."""
    db = jax.random.uniform(key, (audio.shape[0], 1), minval=low_db, maxval=high_db)
    return audio * 10.0 ** (db / 20.0)


def noise(audio: jax.Array, key: jax.Array, low_db: float, high_db: float) -> jax.Array:
    """White noise in each row, level uniform in decibels relative to full scale."""
    level, sample = jax.random.split(key)
    db = jax.random.uniform(level, (audio.shape[0], 1), minval=low_db, maxval=high_db)
    # Uniform noise: a fifth of the time of Gaussian noise, and a mel band cannot tell them apart.
    width = 12.0**0.5
    return audio + 10.0 ** (db / 20.0) * width * (jax.random.uniform(sample, audio.shape) - 0.5)


def mask_band(mel: jax.Array, key: jax.Array, most: int) -> jax.Array:
    """One band of up to `most` neighbouring bins of each row (b, t, m) set to the row's mean."""
    where, size = jax.random.split(key)
    b, _, m = mel.shape
    width = jax.random.randint(size, (b, 1), 0, most + 1)
    first = jax.random.randint(where, (b, 1), 0, m - most + 1)
    bins = jnp.arange(m)
    hidden = (bins >= first) & (bins < first + width)
    return jnp.where(hidden[:, None], jnp.mean(mel, axis=(1, 2), keepdims=True), mel)
