"""Convolutions with their weights."""

from flax import nnx
import jax
import jax.numpy as jnp

from mossjax.nn.param import Initializer, fan_in, param, zeros
from mossjax.ops import conv


class Conv1d(nnx.Module):
    """Zero-padded 1-D convolution, (b, t, c_in) -> (b, t_out, c_out); see `ops.conv.conv1d`.

    `start` is the variance that fresh weights make of inputs of variance 1.
    """

    def __init__(
        self, c_in: int, c_out: int, kernel: int, *, stride: int = 1, left: int = 0,
        right: int = 0, dilation: int = 1, bias: bool = True, start: float = 1.0, rngs: nnx.Rngs,
    ):
        self.stride, self.left, self.right, self.dilation = stride, left, right, dilation
        axes = ('kernel', 'conv_in', 'conv_out')
        self.kernel = param(rngs, (kernel, c_in, c_out), axes, fan_in(start, axes=(0, 1)))
        self.bias = param(rngs, (c_out,), ('conv_out',), zeros) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        return self._run(x, self.left, self.right)

    def unpadded(self, x: jax.Array) -> jax.Array:
        """The same of x (b, left + t + right, c_in) that stands among its neighbours."""
        return self._run(x, 0, 0)

    def _run(self, x: jax.Array, left: int, right: int) -> jax.Array:
        y = conv.conv1d(
            x, self.kernel[...], stride=self.stride, left=left, right=right,
            dilation=self.dilation,
        )  # fmt: skip
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class ConvTranspose1d(nnx.Module):
    """(b, t, c_in) -> (b, stride * t, c_out); see `ops.conv.conv_transpose1d`.

    Fresh weights mix channels and go straight from input to input.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int, *, stride: int, rngs: nnx.Rngs):
        self.stride, self.cut = stride, (kernel - stride) // 2
        axes = ('kernel', 'conv_in', 'conv_out')
        self.kernel = param(rngs, (kernel, c_in, c_out), axes, interpolating(stride))
        self.bias = param(rngs, (c_out,), ('conv_out',), zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = conv.conv_transpose1d(x, self.kernel[...], stride=self.stride, cut=self.cut)
        return y + self.bias[...].astype(x.dtype)


def interpolating(stride: int) -> Initializer:
    """Random mixtures of channels, linear in time between the inputs (kernel (taps, in, out)).

    Random taps would begin with a pattern that repeats every `stride` samples (checkerboards in
    pictures, arXiv 1707.02937; in sound a tone).
    """

    def init(key, shape, dtype):
        middle = (shape[0] - 1) / 2
        ramp = jnp.maximum(1 - jnp.abs(jnp.arange(shape[0]) - middle) / stride, 0)
        return ramp[:, None, None].astype(dtype) * fan_in()(key, shape[1:], dtype)

    return init
