"""What the tokenizer hears of its 16 kHz training audio: plain, or distorted on the device.

Each is a function of arrays and a key with fixed shapes, so a step stays one compiled program and
batch i is distorted the same way whenever it is seen again.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mossjax.models.tokenizer import mel
from mossjax.models.tokenizer.config import TokenizerConfig

PHONE_HOP = 320  # samples per frame label, 20 ms
# Shift, gain, noise and band of the default distortion.
SHIFT = 1120  # samples: 70 ms, just short of a code
GAIN_DB = (-12.0, 3.0)
NOISE_DB = (-80.0, -40.0)
BAND = 0.125  # of the mel bins, at most


class Inputs(NamedTuple):
    """What the network sees of a batch: features (b, 8 t, m), mask (b, t) bool, labels."""

    features: jax.Array
    mask: jax.Array
    labels: Mapping


def plain(config: TokenizerConfig, batch: Mapping, key: jax.Array) -> Inputs:
    """Features of the audio as it is."""
    del key
    audio = _float(batch['audio'])
    return Inputs(mel.log_mel(audio, config.mels), _mask(audio, batch['lengths'], config), batch)


def distorted(config: TokenizerConfig, batch: Mapping, key: jax.Array) -> Inputs:
    """Features of the audio delayed, made louder or softer, noisy, and with a band missing."""
    keys = jax.random.split(key, 4)
    audio = _float(batch['audio'])
    by = jax.random.randint(keys[0], audio.shape[:1], 0, SHIFT + 1)
    audio = delay(audio, by, SHIFT)
    audio = gain(audio, keys[1], *GAIN_DB)
    audio = noise(audio, keys[2], *NOISE_DB)
    features = mel.log_mel(audio, config.mels)
    features = mask_band(features, keys[3], int(BAND * config.mels))
    lengths = jnp.minimum(batch['lengths'] + by, audio.shape[1])
    labels = dict(batch)
    if 'phones' in batch:
        labels['phones'] = delay_labels(batch['phones'], by)
    return Inputs(features, _mask(audio, lengths, config), labels)


def _float(audio) -> jax.Array:
    audio = jnp.asarray(audio)
    return audio.astype(jnp.float32) / 32768.0 if audio.dtype == jnp.int16 else audio


def _mask(audio, lengths, config):
    t = audio.shape[1] // config.stride
    return jnp.arange(t) * config.stride < lengths[:, None]


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


def mask_band(features: jax.Array, key: jax.Array, most: int) -> jax.Array:
    """One band of up to `most` neighbouring bins of each row (b, t, m) set to the row's mean."""
    where, size = jax.random.split(key)
    b, _, m = features.shape
    width = jax.random.randint(size, (b, 1), 0, most + 1)
    first = jax.random.randint(where, (b, 1), 0, m - most + 1)
    bins = jnp.arange(m)
    hidden = (bins >= first) & (bins < first + width)
    return jnp.where(hidden[:, None], jnp.mean(features, axis=(1, 2), keepdims=True), features)
