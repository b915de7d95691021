"""Convolutions with their weights."""

from flax import nnx
import jax

from mossjax.nn.param import fan_in, param, zeros
from mossjax.ops import conv


class Conv1d(nnx.Module):
    """Zero-padded 1-D convolution, (b, t, c_in) -> (b, t_out, c_out); see `ops.conv.conv1d`."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, *, stride: int = 1, left: int = 0,
        right: int = 0, rngs: nnx.Rngs,
    ):
        self.stride, self.left, self.right = stride, left, right
        axes = ('kernel', 'conv_in', 'conv_out')
        self.kernel = param(rngs, (kernel, c_in, c_out), axes, fan_in(axes=(0, 1)))
        self.bias = param(rngs, (c_out,), ('conv_out',), zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = conv.conv1d(x, self.kernel[...], stride=self.stride, left=self.left, right=self.right)
        return y + self.bias[...].astype(x.dtype)
