"""The language model: one trunk, a text branch and a speech branch on its output.

A grid row is a pair (text id, audio id). The row's text id decides which table embeds it; the
trunk reads all rows, then both branches read the trunk's output, each with its own norm and head.
Source: arXiv 2510.00499 section 3, upstream `MossSpeechForCausalLM`.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from mossjax.models.lm import cache as cache_lib
from mossjax.models.lm.cache import Cache
from mossjax.models.lm.config import LMConfig
from mossjax.nn.linear import Embedding, Linear, RMSNorm
from mossjax.nn.param import Network, describe, normal, scan_layers, stack
from mossjax.nn.shard import constrain
from mossjax.nn.transformer import Block
from mossjax.ops import attention as attention_ops
from mossjax.ops import rope
from mossjax.ops.attention import Mask

TEXT, AUDIO = 0, 1  # channels of a grid row


class Hidden(NamedTuple):
    """Branch outputs after their norms, (b, t, d) each; None of a branch that was not asked for."""

    text: jax.Array | None
    audio: jax.Array | None


class Logits(NamedTuple):
    """(b, t, vocab_size) and (b, t, audio_vocab_size)."""

    text: jax.Array
    audio: jax.Array


def keep_all(f: Callable) -> Callable:
    """The remat policy that recomputes nothing."""
    return f


class LanguageModel(nnx.Module):
    """Trunk and two branches over the two-channel grid.

    Args:
      attend: attention implementation, see `ops.attention.attention`.
      remat: wraps the body of one layer, e.g. `jax.checkpoint` with a policy.
    """

    def __init__(
        self, config: LMConfig, *, attend=attention_ops.attention, remat=keep_all, rngs: nnx.Rngs
    ):
        self.config = config
        self.remat = remat
        d, init = config.hidden_size, normal(config.initializer_range)

        def block(rngs):
            return Block(
                d, config.intermediate_size, config.num_attention_heads,
                config.num_key_value_heads, config.head_dim, eps=config.rms_norm_eps,
                init_std=config.initializer_range, attend=attend, rngs=rngs,
            )  # fmt: skip

        def head(vocab):
            return Linear(d, vocab, axes=('embed', 'vocab'), bias=False, init=init, rngs=rngs)

        self.text_embed = Embedding(config.vocab_size, d, init=init, rngs=rngs)
        self.audio_embed = Embedding(config.audio_vocab_size, d, init=init, rngs=rngs)
        self.trunk = stack(block, config.num_shared_layers, rngs)
        self.text_branch = stack(block, config.num_modality_layers, rngs)
        self.audio_branch = stack(block, config.num_modality_layers, rngs)
        self.text_norm = RMSNorm(d, eps=config.rms_norm_eps, rngs=rngs)
        self.audio_norm = RMSNorm(d, eps=config.rms_norm_eps, rngs=rngs)
        self.text_head = head(config.vocab_size)
        self.audio_head = head(config.audio_vocab_size)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """(b, t, 2) ids -> (b, t, d). The channel that is not chosen never reaches the network."""
        text, audio = tokens[..., TEXT], tokens[..., AUDIO]
        is_speech = text == self.config.modality_pad_token_id
        x = jnp.where(is_speech[..., None], self.audio_embed(audio), self.text_embed(text))
        return constrain(x, ('batch', 'time', None))

    def rotation(self, positions: jax.Array, dtype) -> tuple[jax.Array, jax.Array]:
        """cos and sin at positions (b, t)."""
        table = rope.frequencies(self.config.head_dim, self.config.rope_theta)
        return rope.rotation(positions, table, dtype)

    def hidden(
        self, tokens: jax.Array, positions: jax.Array, mask: Mask,
        channels: tuple[int, ...] = (TEXT, AUDIO),
    ) -> Hidden:  # fmt: skip
        """Branch outputs of a whole grid.

        Args:
          tokens: (b, t, 2) int32; audio ids below audio_vocab_size on every row.
          positions: (b, t) int32.
          mask: who sees whom, causal.
          channels: whose branches are run.
        """
        x = self.embed(tokens)
        rotation = self.rotation(positions, x.dtype)

        def body(layer, x, _):
            return layer(x, rotation, mask)[0], None

        run = functools.partial(scan_layers, body=body, remat=self.remat)
        h, _ = run(self.trunk, x)
        branches = (self.text_branch, self.text_norm), (self.audio_branch, self.audio_norm)
        return Hidden(*(
            norm(run(branch, h)[0]) if channel in channels else None
            for channel, (branch, norm) in enumerate(branches)
        ))

    def logits(self, hidden: Hidden) -> Logits:
        """Both heads; the logits keep the dtype of the activations."""
        axes = ('batch', 'time', 'vocab')
        return Logits(
            constrain(self.text_head(hidden.text), axes),
            constrain(self.audio_head(hidden.audio), axes),
        )

    def __call__(self, tokens: jax.Array, positions: jax.Array, mask: Mask) -> Logits:
        return self.logits(self.hidden(tokens, positions, mask))

    def extend(self, tokens: jax.Array, valid: jax.Array, cache: Cache) -> tuple[Hidden, Cache]:
        """Appends rows to a cache: a prompt, a chunk of it, or one generated row.

        Args:
          tokens: (b, t, 2) int32.
          valid: (b, t) bool, False on padding rows (left padding of prompts, finished samples).
          cache: what came before.

        Returns:
          (branch outputs of the new rows, the longer cache). Outputs of padding rows are finite
          and meaningless.

        Raises:
          InputError: the rows do not fit (inside jit only seen if they exceed the whole cache).
        """
        cache.check_room(tokens.shape[1])
        x = self.embed(tokens)
        rotation = self.rotation(cache.positions(valid), x.dtype)
        seen = cache_lib.write(cache.valid, valid, cache.length)
        mask = Mask(causal=True, kv_valid=seen, q_offset=cache.length)

        def body(layer, x, buffers):
            def recall(*new):
                return tuple(
                    cache_lib.write(buffer, n, cache.length)
                    for buffer, n in zip(buffers, new, strict=True)
                )

            return layer(x, rotation, mask, recall)

        h, trunk = scan_layers(self.trunk, x, body, cache.trunk)
        text, text_cache = scan_layers(self.text_branch, h, body, cache.text)
        audio, audio_cache = scan_layers(self.audio_branch, h, body, cache.audio)
        longer = Cache(trunk, text_cache, audio_cache, seen, cache.length + tokens.shape[1])
        return Hidden(self.text_norm(text), self.audio_norm(audio)), longer


def network(config: LMConfig, *, attend=attention_ops.attention, remat=keep_all) -> Network:
    """`describe`s the model: shapes, axes, init and bind without allocating anything."""
    return describe(lambda rngs: LanguageModel(config, attend=attend, remat=remat, rngs=rngs))
