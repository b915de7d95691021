"""Residual blocks of periodic activations, and the stages made of them."""

from flax import nnx
import jax
import jax.numpy as jnp

from mossjax.models.vocoder.hift.config import HiftConfig
from mossjax.nn.convnet import Conv1d, ConvTranspose1d
from mossjax.nn.param import ones, param
from mossjax.ops.sine import sin_squared


class Snake(nnx.Module):
    """x + sin^2(alpha x) / alpha, alpha per channel (Ziyin et al., 2020)."""

    def __init__(self, c: int, *, rngs: nnx.Rngs):
        self.alpha = param(rngs, (c,), ('norm',), ones)

    def __call__(self, x: jax.Array) -> jax.Array:
        alpha = self.alpha[...].astype(x.dtype)
        return x + sin_squared(x * alpha) * (1 / (alpha + 1e-9))


def same(
    c_in: int, c_out: int, kernel: int, *, dilation: int = 1, start: float = 1.0, rngs: nnx.Rngs
) -> Conv1d:
    """A convolution of odd width that keeps the length; `start` as of `Conv1d`."""
    side = dilation * (kernel - 1) // 2
    return Conv1d(
        c_in, c_out, kernel, left=side, right=side, dilation=dilation, start=start, rngs=rngs
    )


class Unit(nnx.Module):
    """x + conv(snake(dilated conv(snake(x))))."""

    def __init__(self, c: int, kernel: int, dilation: int, *, rngs: nnx.Rngs):
        self.snake1, self.snake2 = Snake(c, rngs=rngs), Snake(c, rngs=rngs)
        self.conv1 = same(c, c, kernel, dilation=dilation, rngs=rngs)
        self.conv2 = same(c, c, kernel, start=0.1, rngs=rngs)  # at first hardly anything is added

    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        y = self.conv1(jnp.where(valid, self.snake1(x), 0))
        return x + self.conv2(jnp.where(valid, self.snake2(y), 0))


class ResBlock(nnx.Module):
    """Units of growing dilation."""

    def __init__(self, c: int, kernel: int, dilations: tuple[int, ...], *, rngs: nnx.Rngs):
        self.depth = len(dilations)
        for i, dilation in enumerate(dilations):
            setattr(self, f'unit{i}', Unit(c, kernel, dilation, rngs=rngs))

    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        for i in range(self.depth):
            x = getattr(self, f'unit{i}')(x, valid)
        return x


class Stage(nnx.Module):
    """Upsampling, the source's spectrum added at the new rate, and the mean of residual blocks."""

    def __init__(self, config: HiftConfig, i: int, *, rngs: nnx.Rngs):
        c, last = config.width(i), len(config.rates) - 1
        self.slope, self.last, self.count = config.slope, i == last, len(config.block_kernels)
        self.up = ConvTranspose1d(2 * c, c, config.kernels[i], stride=config.rates[i], rngs=rngs)
        # The spectrum has the rate of the last stage.
        step = 1
        for rate in config.rates[i + 1 :]:
            step *= rate
        kernel, side = (1, 0) if step == 1 else (2 * step, step // 2)
        # Few bins of the source's spectrum say much, none of them loudly. A fresh generator that
        # hardly hears it learns tones of its own from the mel, which follow no pitch, and after
        # that to shut its ears.
        self.source_down = Conv1d(
            2 * config.bins, c, kernel, stride=step, left=side, right=side, start=10.0, rngs=rngs
        )
        self.source_block = ResBlock(c, config.source_kernels[i], config.dilations, rngs=rngs)
        for j, kernel in enumerate(config.block_kernels):
            setattr(self, f'block{j}', ResBlock(c, kernel, config.dilations, rngs=rngs))

    def __call__(
        self, x: jax.Array, spectrum: jax.Array, valid_in: jax.Array, valid: jax.Array
    ) -> jax.Array:
        """Args:
          x: (b, t, 2c). spectrum: (b, frames, 18), zero where it does not exist.
          valid_in: (b, t, 1) bool. valid: (b, rate * t, 1), one frame longer in the last stage.

        Returns:
          (b, rate * t, c), one frame longer in the last stage; rubbish where not valid.
        """
        x = self.up(jnp.where(valid_in, jax.nn.leaky_relu(x, self.slope), 0))
        if self.last:  # as many frames as the spectrum: the second one is mirrored to the front
            x = jnp.concatenate([x[:, 1:2], x], axis=1)
        x = x + self.source_block(self.source_down(spectrum), valid)
        blocks = [getattr(self, f'block{j}') for j in range(self.count)]
        return sum(block(x, valid) for block in blocks) / self.count
