"""Codes' embeddings -> frames: conformer with look-ahead, x4 upsampling, conformer at mel rate.

Upstream: `UpsampleConformerEncoder` (CosyVoice 2), the branch without convolution modules.
"""

import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from mossjax.models.flow.config import Context, FlowConfig
from mossjax.nn.attention import MultiHeadAttention
from mossjax.nn.convnet import Conv1d
from mossjax.nn.linear import LayerNorm, Linear
from mossjax.nn.param import depth, fan_in, param, scan_layers, stack, zeros
from mossjax.ops import attention as attention_ops
from mossjax.ops.attention import Mask


def relative_positions(t: int, d: int, past: int = 0) -> np.ndarray:
    """(past + 2t - 1, d) float32 sinusoids of the distance query - key, falling to -(t - 1).

    The distances of t queries to `past` keys before them and to themselves. Sine in even channels,
    cosine in odd ones, wavelengths from 2 pi to 20000 pi.
    """
    distance = np.arange(past + t - 1, -t, -1, dtype=np.float64)[:, None]
    angle = distance * np.exp(np.arange(0, d, 2) * (-math.log(10000.0) / d))
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(-1, d).astype('float32')


def by_distance(scores: jax.Array) -> jax.Array:
    """(b, n, t, past + 2t - 1) scores by distance, the largest first -> (b, n, t, past + t) by key.

    Query i and key j, counted from the first past one, are i + past - j apart, which stands in
    column t - 1 - i + j: every row is read one place further left than the row above. Padding one
    column and cutting the flat array at another width does that without a gather.
    """
    b, n, t, r = scores.shape
    flat = jnp.pad(scores, ((0, 0), (0, 0), (0, 0), (0, 1))).reshape(b, n, t * (r + 1))
    return flat[:, :, t - 1 : t - 1 + t * r].reshape(b, n, t, r)[..., : r + 1 - t]


def drop(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Dropout; without a key (inference) the identity."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


class InputLayer(nnx.Module):
    """Linear and LayerNorm, scaled by sqrt(width)."""

    def __init__(self, c_in: int, width: int, *, rngs: nnx.Rngs):
        self.linear = Linear(c_in, width, rngs=rngs)
        self.norm = LayerNorm(width, rngs=rngs)
        self.scale = math.sqrt(width)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.linear(x)) * self.scale


class LookAhead(nnx.Module):
    """Residual pair of convolutions: frame i sees i .. i + lookahead, then i - 2 .. i of that."""

    def __init__(self, width: int, lookahead: int, *, rngs: nnx.Rngs):
        self.conv1 = Conv1d(width, width, lookahead + 1, right=lookahead, rngs=rngs)
        self.conv2 = Conv1d(width, width, 3, left=2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.conv2(jax.nn.leaky_relu(self.conv1(x), 0.01))


class RelativeAttention(MultiHeadAttention):
    """Attention whose score adds a term in the distance: ((q+u) k + (q+v) p(i-j)) / sqrt(h)."""

    def __init__(self, d: int, n: int, *, attend, rngs: nnx.Rngs):
        h = d // n
        super().__init__(d, n, h, biases='qkvo', attend=attend, rngs=rngs)
        self.position = param(rngs, (d, n, h), ('embed', 'heads', 'head_dim'), fan_in())
        self.content_bias = param(rngs, (n, h), ('heads', 'head_dim'), zeros)
        self.position_bias = param(rngs, (n, h), ('heads', 'head_dim'), zeros)

    def __call__(self, x: jax.Array, mask: Mask) -> jax.Array:
        return self.extend(x, mask)[0]

    def extend(self, x: jax.Array, mask: Mask, past=None) -> tuple[jax.Array, tuple]:
        """Attends to `past` keys and values, each (b, s, n, h), and then to x itself.

        Returns:
          (output, keys and values of x).
        """
        q, own = self.heads(x, 'q'), (self.heads(x, 'k'), self.heads(x, 'v'))
        k, v = own
        if past is not None:
            k, v = (jnp.concatenate(pair, axis=1) for pair in zip(past, own, strict=True))
        d, _, h = self.position.shape
        table = relative_positions(x.shape[1], d, k.shape[1] - x.shape[1])
        table = jnp.asarray(table, x.dtype)
        p = jnp.einsum('rd,dnh->rnh', table, self.position[...].astype(x.dtype))
        distance = jnp.einsum(
            'btnh,rnh->bntr', q + self.position_bias[...].astype(x.dtype), p,
            preferred_element_type=jnp.float32,
        )  # fmt: skip
        y = self.attend(
            q + self.content_bias[...].astype(x.dtype), k, v, mask,
            bias=by_distance(distance) * h**-0.5,
        )  # fmt: skip
        return self.merge(y), own


class ConformerBlock(nnx.Module):
    """Pre-norm relative attention and feed-forward; the norms' epsilon is 1e-12 upstream."""

    def __init__(self, config: FlowConfig, *, attend, rngs: nnx.Rngs):
        d = config.width
        self.rate = config.dropout
        self.attention_norm = LayerNorm(d, eps=1e-12, rngs=rngs)
        self.attention = RelativeAttention(d, config.heads, attend=attend, rngs=rngs)
        self.ff_norm = LayerNorm(d, eps=1e-12, rngs=rngs)
        self.ff_in = Linear(d, config.ff_width, axes=('embed', 'mlp'), rngs=rngs)
        self.ff_out = Linear(config.ff_width, d, axes=('mlp', 'embed'), rngs=rngs)

    def __call__(self, x: jax.Array, mask: Mask, key: jax.Array | None = None) -> jax.Array:
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        x = x + drop(self.attention(self.attention_norm(x), mask), self.rate, keys[0])
        hidden = drop(jax.nn.silu(self.ff_in(self.ff_norm(x))), self.rate, keys[1])
        return x + drop(self.ff_out(hidden), self.rate, keys[2])

    def extend(self, x: jax.Array, mask: Mask, past: tuple) -> tuple[jax.Array, tuple]:
        """Without dropout, after the keys and values of `past`; see `RelativeAttention.extend`."""
        y, own = self.attention.extend(self.attention_norm(x), mask, past)
        x = x + y
        return x + self.ff_out(jax.nn.silu(self.ff_in(self.ff_norm(x)))), own


class Encoder(nnx.Module):
    """(b, n, input_size) embedded codes -> (b, ratio * (n - held), width)."""

    def __init__(
        self, config: FlowConfig, *, attend=attention_ops.attention, remat=lambda f: f,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        d, self.ratio, self.rate = config.width, config.ratio, config.dropout
        self.remat = remat

        def block(rngs):
            return ConformerBlock(config, attend=attend, rngs=rngs)

        self.embed = InputLayer(config.input_size, d, rngs=rngs)
        self.lookahead = LookAhead(d, config.lookahead, rngs=rngs)
        self.blocks = stack(block, config.blocks, rngs)
        self.upsample = Conv1d(d, d, 2 * config.ratio + 1, left=2 * config.ratio, rngs=rngs)
        self.up_embed = InputLayer(d, d, rngs=rngs)
        self.up_blocks = stack(block, config.up_blocks, rngs)
        self.norm = LayerNorm(d, rngs=rngs)

    def __call__(
        self, x: jax.Array, lengths: jax.Array, context: Context, key: jax.Array | None = None
    ) -> jax.Array:
        """Args:
          x: (b, n, input_size). lengths: (b,) codes that exist, the `held` ones included.
          context: mask and held codes. key: turns dropout on (training).

        Padded positions hold rubbish that no valid position sees.
        """
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)
        n = x.shape[1]
        # The look-ahead must meet zeros past the end; an embedded zero would be the norm's bias.
        x = jnp.where((jnp.arange(n) < lengths[:, None])[..., None], self.embed(x), 0)
        x = self.lookahead(drop(x, self.rate, keys[0]))[:, : n - context.held]
        lengths = lengths - context.held
        x = self._run(self.blocks, x, lengths, context.chunk, keys[1])
        x = self.up_embed(self.upsample(jnp.repeat(x, self.ratio, axis=1)))
        chunk = None if context.chunk is None else self.ratio * context.chunk
        x = drop(x, self.rate, keys[2])
        return self.norm(self._run(self.up_blocks, x, self.ratio * lengths, chunk, keys[3]))

    def _run(self, blocks, x, lengths, chunk, key):
        mask = Mask(chunk=chunk, kv_valid=jnp.arange(x.shape[1]) < lengths[:, None])
        keys = None if key is None else jax.random.split(key, depth(blocks))
        x, _ = scan_layers(
            blocks, x, lambda block, x, k: (block(x, mask, k), None), keys, remat=self.remat
        )
        return x
