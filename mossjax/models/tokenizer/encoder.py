"""The causal Whisper-VQ encoder: log-mel at 100 Hz to vectors and codes at 12.5 Hz."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from mossjax.models.tokenizer import quantizer
from mossjax.models.tokenizer.config import TokenizerConfig
from mossjax.nn.attention import MultiHeadAttention
from mossjax.nn.convnet import Conv1d
from mossjax.nn.linear import LayerNorm, Linear
from mossjax.nn.param import normal, param, scan_layers, stack
from mossjax.ops import attention as attention_ops
from mossjax.ops.activations import gelu
from mossjax.ops.attention import Mask


def sinusoids(rows: int, d: int) -> np.ndarray:
    """Whisper's position table (rows, d): sines in the first half, cosines in the second."""
    rates = np.exp(-np.arange(d // 2) * np.log(10000.0) / (d // 2 - 1))
    angles = np.arange(rows)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def _sinusoid_init(key, shape, dtype):
    del key
    return jnp.asarray(sinusoids(*shape), dtype)


class Positions(nnx.Module):
    """A stored table of positions that is never trained (the checkpoint's values are used)."""

    def __init__(self, rows: int, d: int, *, rngs: nnx.Rngs):
        self.table = param(rngs, (rows, d), (None, 'embed'), _sinusoid_init)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x (b, t, d) plus rows 0..t-1."""
        if x.shape[1] > self.table.shape[0]:
            raise ValueError(f'{x.shape[1]} positions, the table has {self.table.shape[0]}')
        return x + jax.lax.stop_gradient(self.table[: x.shape[1]]).astype(x.dtype)


class EncoderLayer(nnx.Module):
    """Pre-norm self-attention and feed-forward, (b, t, d) -> (b, t, d)."""

    def __init__(self, d: int, heads: int, ffn: int, *, attend, rngs: nnx.Rngs):
        self.attn_norm = LayerNorm(d, rngs=rngs)
        self.attn = MultiHeadAttention(
            d, heads, d // heads, biases='qvo', attend=attend, rngs=rngs
        )
        self.mlp_norm = LayerNorm(d, rngs=rngs)
        self.up = Linear(d, ffn, axes=('embed', 'mlp'), rngs=rngs)
        self.down = Linear(ffn, d, axes=('mlp', 'embed'), rngs=rngs)

    def __call__(self, x: jax.Array, mask: Mask) -> jax.Array:
        return self.feed_forward(x + self.attn(self.attn_norm(x), mask))

    def after(
        self, x: jax.Array, mask: Mask, keys: jax.Array, values: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The same where keys and values (b, s, n, h) of earlier positions come first.

        Args:
          mask: over s + t keys.

        Returns:
          (b, t, d), and the t new keys and values.
        """
        y = self.attn_norm(x)
        q, k, v = (self.attn.heads(y, name) for name in 'qkv')
        keys, values = jnp.concatenate([keys, k], axis=1), jnp.concatenate([values, v], axis=1)
        x = x + self.attn.merge(self.attn.attend(q, keys, values, mask))
        return self.feed_forward(x), k, v

    def feed_forward(self, x: jax.Array) -> jax.Array:
        return x + self.down(gelu(self.up(self.mlp_norm(x))))


def causal_layers(layers: EncoderLayer, x: jax.Array, *, remat=lambda f: f):
    """Runs stacked layers; (last output, the outputs of all layers (l, b, t, d))."""

    def body(layer, x, _):
        y = layer(x, Mask(causal=True))
        return y, y

    return scan_layers(layers, x, body, remat=remat)


class SpeechEncoder(nnx.Module):
    """Everything before the codebook.

    Two causal convolutions (to 50 Hz), stored positions, causal layers, averages of 4 frames.
    Padding needs no mask: what comes later cannot change an earlier vector.
    """

    def __init__(
        self, config: TokenizerConfig, *, attend=attention_ops.attention, remat=lambda f: f,
        rngs: nnx.Rngs,
    ):
        self.pool, self.remat = config.pool, remat
        self.conv1 = Conv1d(config.mels, config.d, 3, left=2, rngs=rngs)
        self.conv2 = Conv1d(config.d, config.d, 3, stride=2, left=2, rngs=rngs)
        self.positions = Positions(config.positions, config.d, rngs=rngs)
        self.layers = stack(
            lambda rngs: EncoderLayer(
                config.d, config.heads, config.ffn, attend=attend, rngs=rngs
            ),
            config.layers, rngs,
        )

    def stages(self, mel: jax.Array) -> dict[str, jax.Array]:
        """All intermediate results, for comparison with other implementations."""
        conv1 = self.conv1(mel.astype(self.conv1.kernel.dtype))
        conv2 = self.conv2(gelu(conv1))
        embedded = self.positions(gelu(conv2))
        last, outputs = causal_layers(self.layers, embedded, remat=self.remat)
        b, t, d = last.shape
        pooled = jnp.mean(last.reshape(b, t // self.pool, self.pool, d), axis=2)
        return {
            'conv1': conv1, 'conv2': conv2, 'embedded': embedded, 'layers': outputs,
            'pooled': pooled,
        }

    def __call__(self, mel: jax.Array) -> jax.Array:
        """mel (b, 8 t, m) -> (b, t, d): one vector per code (pool 4), before the codebook."""
        return self.stages(mel)['pooled']


class Tokenizer(nnx.Module):
    """Encoder and codebook: what a codec directory holds."""

    def __init__(self, config: TokenizerConfig, *, attend=attention_ops.attention, rngs: nnx.Rngs):
        self.encoder = SpeechEncoder(config, attend=attend, rngs=rngs)
        self.codebook = param(rngs, (config.codes, config.d), ('code', 'embed'), normal(0.02))

    def __call__(self, mel: jax.Array) -> jax.Array:
        """mel (b, 8 t, m) -> ids (b, t) int32."""
        return quantizer.nearest(self.encoder(mel), self.codebook[...])
