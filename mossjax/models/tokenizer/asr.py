"""What training puts behind the codebook: upper layers and heads that must understand the codes.

None of this is part of the tokenizer. The upper half and the text decoder are Whisper's, as in
upstream's conditional-generation model; the two small heads learn phones directly and suit
small networks that start from nothing.
"""

from collections.abc import Callable, Mapping

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from mossjax.models.tokenizer.config import TokenizerConfig
from mossjax.models.tokenizer.encoder import EncoderLayer, Positions, SpeechEncoder, causal_layers
from mossjax.nn.attention import MultiHeadAttention
from mossjax.nn.linear import Embedding, LayerNorm, Linear
from mossjax.nn.losses import cross_entropy
from mossjax.nn.param import normal, param, scan_layers, stack
from mossjax.ops import attention as attention_ops
from mossjax.ops.activations import gelu
from mossjax.ops.attention import Mask
from mossjax.ops.losses import IGNORE

CTC_FRAMES = 2  # CTC frames per code: 12.5 a second are fewer than the phones of fast speech

# (head, hidden (b, t, d), batch, mask (b, t)) -> (loss, metrics)
HeadLoss = Callable[[nnx.Module, jax.Array, Mapping, jax.Array], tuple[jax.Array, dict]]


class UpperHalf(nnx.Module):
    """Positions, causal layers at 12.5 Hz and the final norm, (b, t, d) -> (b, t, d)."""

    def __init__(self, config: TokenizerConfig, *, attend, remat, rngs: nnx.Rngs):
        self.remat = remat
        self.positions = Positions(config.positions // config.pool, config.d, rngs=rngs)
        count = config.encoder_layers - config.layers
        self.layers = stack(
            lambda rngs: EncoderLayer(
                config.d, config.heads, config.ffn, attend=attend, rngs=rngs
            ),
            count, rngs,
        ) if count else None
        self.norm = LayerNorm(config.d, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.positions(x)
        if self.layers is not None:
            x, _ = causal_layers(self.layers, x, remat=self.remat)
        return self.norm(x)


class Recogniser(nnx.Module):
    """The network of a training step, quantisation left to the caller between its two halves.

    Args:
      heads: {name: config, rngs -> module}.
    """

    def __init__(
        self, config: TokenizerConfig, heads: Mapping[str, Callable], *,
        attend=attention_ops.attention, remat=lambda f: f, rngs: nnx.Rngs,
    ):
        self.encoder = SpeechEncoder(config, attend=attend, remat=remat, rngs=rngs)
        self.upper = UpperHalf(config, attend=attend, remat=remat, rngs=rngs)
        self.heads = nnx.Dict({name: make(config, rngs=rngs) for name, make in heads.items()})


class DecoderLayer(EncoderLayer):
    """An encoder layer with cross-attention to the speech between its two halves."""

    def __init__(self, d: int, heads: int, ffn: int, *, attend, rngs: nnx.Rngs):
        super().__init__(d, heads, ffn, attend=attend, rngs=rngs)
        self.cross_norm = LayerNorm(d, rngs=rngs)
        self.cross = MultiHeadAttention(
            d, heads, d // heads, biases='qvo', attend=attend, rngs=rngs
        )

    def __call__(self, x: jax.Array, speech: jax.Array, valid: jax.Array) -> jax.Array:
        """x (b, u, d), speech (b, t, d), valid (b, t) bool."""
        x = x + self.attn(self.attn_norm(x), Mask(causal=True))
        x = x + self.cross(self.cross_norm(x), Mask(kv_valid=valid), speech)
        return x + self.down(gelu(self.up(self.mlp_norm(x))))


class TextDecoder(nnx.Module):
    """Whisper's decoder; the output projection is the token table."""

    def __init__(
        self, config: TokenizerConfig, *, attend=attention_ops.attention, rngs: nnx.Rngs
    ):
        self.start_id, self.pad_id = config.start_id, config.pad_id
        self.embed = Embedding(config.vocab, config.d, init=normal(0.02), rngs=rngs)
        self.positions = param(
            rngs, (config.target_positions, config.d), (None, 'embed'), normal(0.02)
        )
        self.layers = stack(
            lambda rngs: DecoderLayer(
                config.d, config.decoder_heads, config.decoder_ffn, attend=attend, rngs=rngs
            ),
            config.decoder_layers, rngs,
        )
        self.norm = LayerNorm(config.d, rngs=rngs)

    def __call__(self, labels: jax.Array, speech: jax.Array, valid: jax.Array) -> jax.Array:
        """Hidden states (b, u, d) that predict labels (b, u), each from those before it."""
        before = jnp.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=self.start_id)
        before = jnp.where(before == IGNORE, self.pad_id, before)
        x = self.embed(before) + self.positions[: labels.shape[1]]

        def body(layer, x, _):
            return layer(x, speech, valid), None

        return self.norm(scan_layers(self.layers, x, body)[0])

    def logits(self, hidden: jax.Array) -> jax.Array:
        """(b, u, d) -> (b, u, v)."""
        return hidden @ self.embed.table[...].T


def text_loss(head: TextDecoder, hidden, batch, mask):
    """Mean cross-entropy over `batch['text']` (b, u) int32, -100 where not supervised."""
    states = head(batch['text'], hidden, mask)
    sums = cross_entropy(states, head.embed.table[...].T, batch['text'])
    count = jnp.maximum(sums.count, 1.0)
    return sums.loss / count, {'text_accuracy': sums.correct / count}


class PhoneHead(nnx.Module):
    """Each code predicts `frames` consecutive frames of `classes` classes."""

    def __init__(self, config: TokenizerConfig, classes: int, frames: int, *, rngs: nnx.Rngs):
        self.frames = frames
        self.out = Linear(config.d, frames * classes, rngs=rngs)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """(b, t, d) -> (b, frames t, classes) logits."""
        b, t, _ = hidden.shape
        return self.out(hidden).reshape(b, t * self.frames, -1)


def ctc_loss(head: PhoneHead, hidden, batch, mask):
    """CTC per target symbol; the last class of the head is the blank.

    Batch: `targets` (b, u) int32 symbols, `target_lengths` (b,). A row without targets counts
    nothing. Rows too short for their targets would be impossible; they are left out.
    """
    logits = head(hidden).astype(jnp.float32)
    targets, lengths = batch['targets'], batch['target_lengths']
    absent = (jnp.arange(targets.shape[1]) >= lengths[:, None]).astype(jnp.float32)
    padded = jnp.repeat(1.0 - mask.astype(jnp.float32), head.frames, axis=1)
    blank = logits.shape[-1] - 1
    losses = optax.ctc_loss(logits, padded, targets, absent, blank_id=blank)
    repeats = jnp.sum((targets[:, 1:] == targets[:, :-1]) * (1.0 - absent[:, 1:]), axis=1)
    possible = (lengths > 0) & (jnp.sum(1.0 - padded, axis=1) >= lengths + repeats)
    symbols = jnp.maximum(jnp.sum(jnp.where(possible, lengths, 0)), 1)
    return jnp.sum(jnp.where(possible, losses, 0.0)) / symbols, {}


def frame_loss(head: PhoneHead, hidden, batch, mask):
    """Mean cross-entropy over aligned frames.

    Batch: `phones` (b, head.frames t) int32, -1 where there is no label. Frames of padding codes
    do not count.
    """
    logits = head(hidden).astype(jnp.float32)
    phones = batch['phones'][:, : logits.shape[1]]
    known = (phones >= 0) & jnp.repeat(mask, head.frames, axis=1)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(phones, 0))
    count = jnp.maximum(jnp.sum(known), 1)
    right = jnp.sum((jnp.argmax(logits, axis=-1) == phones) & known) / count
    return jnp.sum(jnp.where(known, losses, 0.0)) / count, {'phone_accuracy': right}
