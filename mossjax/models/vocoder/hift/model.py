"""Mel -> f0 -> source -> waveform. Upstream: `HiFTGenerator` (arXiv 2309.09493)."""

import math

from flax import nnx
import jax
import jax.numpy as jnp

from mossjax.models.flow.mel import HOP
from mossjax.models.vocoder.hift import source, spectrum
from mossjax.models.vocoder.hift.blocks import Stage, same
from mossjax.models.vocoder.hift.config import HiftConfig
from mossjax.models.vocoder.hift.f0 import F0Predictor
from mossjax.nn.linear import Linear

LOUDEST = 100.0  # largest magnitude of the spectrum


class Hift(nnx.Module):
    """The generator. Lengths are exact in padded batches.

    Convolutions look both ways, so every activation is masked before it meets one: a row then gives
    the samples that it gives alone. The ends of the Fourier transforms are those of the row.
    """

    def __init__(self, config: HiftConfig, *, rngs: nnx.Rngs):
        self.config, self.stages = config, len(config.rates)
        self.f0 = F0Predictor(config, rngs=rngs)
        # All alike, the sines make a pulse in each period, as a glottis does.
        self.merge = Linear(
            config.harmonics + 1, 1, axes=(None, None), init=_alike, rngs=rngs
        )  # fmt: skip
        # Log-mels are around -6, and what `post` says is an exponent: a fresh generator that takes
        # them as they are is clipped everywhere, learns to be silent, and has no slope any more.
        self.pre = same(config.mels, config.channels, 7, start=0.02, rngs=rngs)
        for i in range(self.stages):
            setattr(self, f'stage{i}', Stage(config, i, rngs=rngs))
        last = config.width(self.stages - 1)
        self.post = same(last, 2 * config.bins, 7, start=0.01, rngs=rngs)

    def pitch(self, mel: jax.Array, lengths: jax.Array) -> jax.Array:
        """(b, t, m) mel, (b,) frames -> (b, t) f0 in Hz, 0 past the end."""
        valid = _exists(mel.shape[1], lengths)
        return self.f0(jnp.where(valid, mel, 0), valid)

    def source(
        self, f0: jax.Array, noise: jax.Array, reached: jax.Array | int = 0
    ) -> jax.Array:
        """The excitation, merged.

        Args:
          f0: (b, t) Hz. noise: (b or 1, h, 480 t) standard normal.
          reached: (b,) phases that earlier frames have reached, see `source.phases`.

        Returns:
          (b, 480 t) in (-1, 1).
        """
        parts = source.excitation(self.config, f0, noise, reached)
        weight, bias = self.merge.kernel[...], self.merge.bias[...]
        return jnp.tanh(jnp.einsum('bhw,ho->bw', parts, weight) + bias)

    def wave(self, mel: jax.Array, source: jax.Array, lengths: jax.Array) -> jax.Array:
        """The waveform of a mel and its source.

        Args:
          mel: (b, t, m). source: (b, 480 t). lengths: (b,) frames that exist.

        Returns:
          (b, 480 t) in +-limit, zero past the end.
        """
        c, t = self.config, mel.shape[1]
        samples = lengths * HOP
        excited = spectrum.analysis(source, samples, n_fft=c.n_fft, hop=c.hop)
        valid = _exists(t, lengths)
        x = self.pre(jnp.where(valid, mel, 0))
        for i in range(self.stages):
            up, extra = math.prod(c.rates[: i + 1]), i + 1 == self.stages
            finer = _exists(up * t + extra, up * lengths + extra)
            x = getattr(self, f'stage{i}')(x, excited, valid, finer)
            valid = finer
        x = self.post(jnp.where(valid, jax.nn.leaky_relu(x, 0.01), 0))  # not the stages' slope
        magnitude, phase = jnp.split(x, 2, axis=-1)
        magnitude = jnp.exp(jnp.minimum(magnitude, math.log(LOUDEST)))
        phase = jnp.sin(phase)
        polar = jnp.concatenate([magnitude * jnp.cos(phase), magnitude * jnp.sin(phase)], axis=-1)
        wave = spectrum.synthesis(polar, samples, n_fft=c.n_fft, hop=c.hop)
        return jnp.clip(wave, -c.limit, c.limit)

    def __call__(self, mel: jax.Array, lengths: jax.Array, noise: jax.Array) -> jax.Array:
        """(b, t, m) natural-log mel, (b,) frames, noise of `source.noise` -> (b, 480 t)."""
        return self.wave(mel, self.source(self.pitch(mel, lengths), noise), lengths)


def _alike(key, shape, dtype) -> jax.Array:
    del key
    return jnp.full(shape, shape[0] ** -0.5, dtype)


def _exists(frames: int, lengths: jax.Array) -> jax.Array:
    return (jnp.arange(frames) < lengths[:, None])[..., None]
