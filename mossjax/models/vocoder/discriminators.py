"""What judges a vocoder's sound while it trains: by periods, and by spectra of several resolutions.

Each discriminator looks at the wave in another way and gives a score for every place it looks at,
which is to be 1 for recordings and 0 for what was generated. Sources: HiFi-GAN (arXiv 2010.05646)
for periods, UnivNet (arXiv 2106.07889) for resolutions.
"""

from collections.abc import Sequence
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp

from mossjax.errors import InputError
from mossjax.nn.convnet import Conv1d
from mossjax.nn.param import fan_in, param, zeros
from mossjax.ops import spectral
from mossjax.ops.conv import conv2d

SLOPE = 0.1  # of every leaky ReLU
# (score of every place (b, places), activations of the layers before it)
Judgement = tuple[jax.Array, list[jax.Array]]


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """The defaults are those that HiFT was trained with.

    Attributes:
      periods: samples between what one of the period discriminators sees side by side.
      period_channels: of its layers.
      n_ffts, windows, hops: samples, one entry a resolution.
      resolution_channels: of all layers of such a discriminator.
    """

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    period_channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    n_ffts: tuple[int, ...] = (1024, 2048, 512)
    windows: tuple[int, ...] = (600, 1200, 240)
    hops: tuple[int, ...] = (120, 240, 50)
    resolution_channels: int = 32

    def __post_init__(self):
        if not len(self.n_ffts) == len(self.windows) == len(self.hops):
            raise InputError(
                f'discriminators: n_ffts {self.n_ffts}, windows {self.windows} and hops '
                f'{self.hops} must have one entry a resolution'
            )
        for n_fft, window in zip(self.n_ffts, self.windows, strict=True):
            if window > n_fft:
                raise InputError(
                    f'discriminators: a window of {window} samples does not fit n_fft {n_fft}'
                )
        if not self.period_channels or not (self.periods or self.n_ffts):
            raise InputError('discriminators: nothing is left to judge by; leave the defaults')

    @property
    def shortest(self) -> int:
        """Samples of a wave in which every discriminator sees two periods, or a whole window."""
        return max(*(2 * p for p in self.periods), *self.windows, 1)


class PeriodDiscriminator(nnx.Module):
    """Every `period`-th sample side by side; the phases are judged alike and apart."""

    def __init__(self, period: int, channels: Sequence[int], *, rngs: nnx.Rngs):
        self.period, self.depth = period, len(channels)
        for i, (c_in, c_out) in enumerate(zip((1, *channels), channels, strict=False)):
            stride = 3 if i + 1 < len(channels) else 1
            conv = Conv1d(c_in, c_out, 5, stride=stride, left=2, right=2, rngs=rngs)
            setattr(self, f'conv{i}', conv)
        self.out = Conv1d(channels[-1], 1, 3, left=1, right=1, rngs=rngs)

    def __call__(self, wave: jax.Array) -> Judgement:
        """(b, w) -> scores (b, period * places); the end is reflected to whole periods."""
        b, w = wave.shape
        wave = jnp.pad(wave, ((0, 0), (0, -w % self.period)), mode='reflect')
        # Phases as rows: (b * period, w / period, 1).
        x = wave.reshape(b, -1, self.period).swapaxes(1, 2).reshape(b * self.period, -1, 1)
        seen = []
        for i in range(self.depth):
            x = jax.nn.leaky_relu(getattr(self, f'conv{i}')(x), SLOPE)
            seen.append(x)
        return self.out(x).reshape(b, -1), seen


class Conv2d(nnx.Module):
    """(b, frames, bins, c_in) -> (b, frames, bins / stride, c_out), zeros around."""

    def __init__(
        self, c_in: int, c_out: int, kernel: tuple[int, int], *, stride: int = 1, rngs: nnx.Rngs
    ):
        self.stride, self.pad = (1, stride), (kernel[0] // 2, kernel[1] // 2)
        axes = ('kernel', None, 'conv_in', 'conv_out')
        self.kernel = param(rngs, (*kernel, c_in, c_out), axes, fan_in(axes=(0, 1, 2)))
        self.bias = param(rngs, (c_out,), ('conv_out',), zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = conv2d(x, self.kernel[...], stride=self.stride, pad=self.pad)
        return y + self.bias[...].astype(x.dtype)


class ResolutionDiscriminator(nnx.Module):
    """The magnitudes of a short-time Fourier transform, seen as an image."""

    def __init__(self, n_fft: int, window: int, hop: int, c: int, *, rngs: nnx.Rngs):
        self.n_fft, self.window, self.hop, self.depth = n_fft, window, hop, 5
        wide = (3, 9)
        self.conv0 = Conv2d(1, c, wide, rngs=rngs)
        for i in (1, 2, 3):
            setattr(self, f'conv{i}', Conv2d(c, c, wide, stride=2, rngs=rngs))
        self.conv4 = Conv2d(c, c, (3, 3), rngs=rngs)
        self.out = Conv2d(c, 1, (3, 3), rngs=rngs)

    def magnitudes(self, wave: jax.Array) -> jax.Array:
        """(b, w) -> (b, frames, n_fft / 2 + 1); centred frames, the ends reflected."""
        side = self.window // 2
        x = jnp.pad(wave, ((0, 0), (side, side)), mode='reflect')
        frames = spectral.frames(x, self.window, self.hop)
        frames = frames * jnp.asarray(spectral.hann(self.window), wave.dtype)
        # The magnitude of silence has no slope; a floor gives it one.
        return jnp.sqrt(spectral.power(jnp.fft.rfft(frames, self.n_fft, axis=-1)) + 1e-9)

    def __call__(self, wave: jax.Array) -> Judgement:
        """(b, w) -> scores (b, frames * bins / 8)."""
        x, seen = self.magnitudes(wave)[..., None], []
        for i in range(self.depth):
            x = jax.nn.leaky_relu(getattr(self, f'conv{i}')(x), SLOPE)
            seen.append(x)
        return self.out(x).reshape(len(wave), -1), seen


class Discriminators(nnx.Module):
    """All of them; each gives a judgement of its own."""

    def __init__(self, config: DiscriminatorConfig, *, rngs: nnx.Rngs):
        self.periods, self.count = config.periods, len(config.n_ffts)
        for period in config.periods:
            found = PeriodDiscriminator(period, config.period_channels, rngs=rngs)
            setattr(self, f'period{period}', found)
        sizes = zip(config.n_ffts, config.windows, config.hops, strict=True)
        for i, (n_fft, window, hop) in enumerate(sizes):
            found = ResolutionDiscriminator(
                n_fft, window, hop, config.resolution_channels, rngs=rngs
            )
            setattr(self, f'resolution{i}', found)

    def __call__(self, wave: jax.Array) -> list[Judgement]:
        """(b, w) samples at 24 kHz, w >= `DiscriminatorConfig.shortest`."""
        names = [f'period{p}' for p in self.periods]
        names += [f'resolution{i}' for i in range(self.count)]
        return [getattr(self, name)(wave) for name in names]
