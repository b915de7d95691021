"""The velocity network of flow matching: residual blocks and transformers at mel rate.

Upstream: `CausalConditionalDecoder` (CosyVoice 2) with one resolution level. All convolutions are
causal; attention sees everything or, when streaming, blocks of frames.
"""

import math

from flax import nnx
import jax
import jax.numpy as jnp

from mossjax.models.flow.config import FlowConfig
from mossjax.nn.attention import MultiHeadAttention
from mossjax.nn.convnet import Conv1d
from mossjax.nn.linear import LayerNorm, Linear
from mossjax.nn.param import scan_layers, stack
from mossjax.ops import attention as attention_ops
from mossjax.ops.activations import gelu
from mossjax.ops.attention import Mask


def mish(x: jax.Array) -> jax.Array:
    """x tanh(log(1 + e^x)), written without the logarithm and the tangent."""
    e = jnp.exp(jnp.minimum(x, 20))  # beyond, the factor is 1 to the last bit
    n = e * (e + 2)
    return x * (n / (n + 2))


def embed_time(t: jax.Array, d: int) -> jax.Array:
    """(b,) times in [0, 1] -> (b, d): sines then cosines of 1000 t at falling frequencies."""
    half = d // 2
    angle = 1000.0 * t[:, None] * jnp.exp(jnp.arange(half) * (-math.log(10000.0) / (half - 1)))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class CausalBlock(nnx.Module):
    """Causal convolution of width 3, LayerNorm, Mish. x is (b, t, c), valid (b, t, 1)."""

    def __init__(self, c_in: int, c_out: int, *, rngs: nnx.Rngs):
        self.conv = Conv1d(c_in, c_out, 3, left=2, rngs=rngs)
        self.norm = LayerNorm(c_out, rngs=rngs)

    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        return mish(self.norm(self.conv(x * valid))) * valid


class ResnetBlock(nnx.Module):
    """Two causal blocks with the time added between them, and a linear shortcut."""

    def __init__(self, c_in: int, c_out: int, c_time: int, *, rngs: nnx.Rngs):
        self.time = Linear(c_time, c_out, axes=(None, 'conv_out'), rngs=rngs)
        self.block1 = CausalBlock(c_in, c_out, rngs=rngs)
        self.block2 = CausalBlock(c_out, c_out, rngs=rngs)
        self.shortcut = Linear(c_in, c_out, axes=('conv_in', 'conv_out'), rngs=rngs)

    def __call__(self, x: jax.Array, valid: jax.Array, time: jax.Array) -> jax.Array:
        y = self.block1(x, valid) + self.time(mish(time))[:, None]
        return self.block2(y, valid) + self.shortcut(x * valid)


class TransformerBlock(nnx.Module):
    """Pre-norm attention and a GELU feed-forward of four times the width."""

    def __init__(self, config: FlowConfig, *, attend, rngs: nnx.Rngs):
        c = config.channels
        self.attention_norm = LayerNorm(c, rngs=rngs)
        self.attention = MultiHeadAttention(
            c, config.estimator_heads, config.head_dim, biases='o', attend=attend, rngs=rngs
        )
        self.ff_norm = LayerNorm(c, rngs=rngs)
        self.ff_in = Linear(c, 4 * c, axes=('embed', 'mlp'), rngs=rngs)
        self.ff_out = Linear(4 * c, c, axes=('mlp', 'embed'), rngs=rngs)

    def __call__(self, x: jax.Array, mask: Mask) -> jax.Array:
        return self.forward(x + self.attention(self.attention_norm(x), mask))

    def forward(self, x: jax.Array) -> jax.Array:
        """The feed-forward half."""
        return x + self.ff_out(gelu(self.ff_in(self.ff_norm(x))))


class Stage(nnx.Module):
    """A residual block followed by transformers."""

    def __init__(self, c_in: int, config: FlowConfig, *, attend, rngs: nnx.Rngs):
        c = config.channels
        self.resnet = ResnetBlock(c_in, c, 4 * c, rngs=rngs)
        self.transformers = stack(
            lambda rngs: TransformerBlock(config, attend=attend, rngs=rngs),
            config.transformers, rngs,
        )  # fmt: skip

    def __call__(self, x: jax.Array, valid: jax.Array, mask: Mask, time: jax.Array) -> jax.Array:
        x = self.resnet(x, valid, time)
        x, _ = scan_layers(self.transformers, x, lambda block, x, _: (block(x, mask), None))
        return x


class Estimator(nnx.Module):
    """Velocity of the mel at time t given mu, the speaker and the known frames."""

    def __init__(
        self, config: FlowConfig, *, attend=attention_ops.attention, remat=lambda f: f,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        c, m = config.channels, config.mels
        self.remat = remat
        self.time_in = Linear(4 * m, 4 * c, axes=(None, 'mlp'), rngs=rngs)
        self.time_out = Linear(4 * c, 4 * c, axes=(None, 'mlp'), rngs=rngs)
        self.down = Stage(4 * m, config, attend=attend, rngs=rngs)
        self.down_conv = Conv1d(c, c, 3, left=2, rngs=rngs)
        self.mid = stack(
            lambda rngs: Stage(c, config, attend=attend, rngs=rngs), config.mid_blocks, rngs
        )
        self.up = Stage(2 * c, config, attend=attend, rngs=rngs)
        self.up_conv = Conv1d(c, c, 3, left=2, rngs=rngs)
        self.final_block = CausalBlock(c, c, rngs=rngs)
        self.final = Linear(c, m, axes=('conv_in', 'mel'), rngs=rngs)

    def __call__(
        self, x: jax.Array, valid: jax.Array, mu: jax.Array, t: jax.Array, speaker: jax.Array,
        cond: jax.Array, *, chunk: int | None,
    ) -> jax.Array:  # fmt: skip
        """Args:
          x, mu, cond: (b, t, m): noisy mel, encoder output, known frames (zeros elsewhere).
          valid: (b, t) bool. t: (b,) times. speaker: (b, m) projected speaker.
          chunk: frames per block of the block-causal mask, None for full attention.

        Returns:
          (b, t, m), zero where not valid.
        """
        mask = Mask(chunk=chunk, kv_valid=valid)
        valid = valid[..., None].astype(x.dtype)
        time = embed_time(t, self.time_in.kernel.shape[0]).astype(x.dtype)
        time = self.time_out(jax.nn.silu(self.time_in(time)))
        speaker = jnp.broadcast_to(speaker[:, None], x.shape)
        h = jnp.concatenate([x, mu, speaker, cond], axis=-1)
        skip = self.down(h, valid, mask, time)
        h = self.down_conv(skip * valid)
        h, _ = scan_layers(
            self.mid, h, lambda stage, h, _: (stage(h, valid, mask, time), None), remat=self.remat
        )
        h = self.up(jnp.concatenate([h, skip], axis=-1), valid, mask, time)
        h = self.final_block(self.up_conv(h * valid), valid)
        return self.final(h) * valid
