"""Pitch from the mel, one value a frame. Upstream: `ConvRNNF0Predictor`."""

from flax import nnx
import jax
import jax.numpy as jnp

from mossjax.models.vocoder.hift.config import HiftConfig
from mossjax.nn.convnet import Conv1d
from mossjax.nn.linear import Linear

LAYERS = 5


class F0Predictor(nnx.Module):
    """Five convolutions of width 3 and a linear map, in Hz."""

    def __init__(self, config: HiftConfig, *, rngs: nnx.Rngs):
        c = config.f0_width
        for i in range(LAYERS):
            conv = Conv1d(c if i else config.mels, c, 3, left=1, right=1, rngs=rngs)
            setattr(self, f'conv{i}', conv)
        self.out = Linear(c, 1, axes=('conv_in', None), rngs=rngs)

    def __call__(self, mel: jax.Array, valid: jax.Array) -> jax.Array:
        """mel (b, t, m), valid (b, t, 1) bool -> (b, t) f0 >= 0 in Hz, 0 where not valid."""
        x = mel
        for i in range(LAYERS):
            x = jax.nn.elu(getattr(self, f'conv{i}')(jnp.where(valid, x, 0)))
        return jnp.where(valid, jnp.abs(self.out(x)), 0)[..., 0]
