"""The language model: one trunk, a text branch and a speech branch on its output.

A grid row is a pair (text id, audio id). The row's text id decides which table embeds it; the
trunk reads all rows, then both branches read the trunk's output, each with its own norm and head.
Source: arXiv 2510.00499 section 3, upstream `MossSpeechForCausalLM`.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from mossjax.models.lm.cache import Cache, Stack
from mossjax.models.lm.config import LMConfig
from mossjax.nn.linear import Embedding, Linear, RMSNorm
from mossjax.nn.param import Network, describe, normal, scan_layers, stack
from mossjax.nn.shard import constrain
from mossjax.nn.transformer import Block, KeysValues
from mossjax.ops import attention as attention_ops
from mossjax.ops import rope
from mossjax.ops.attention import Mask
from mossjax.ops.cached_attention import at_once, lanes

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
      recall: how the cache is read, `cached_attention.at_once` or `in_blocks`, or on a TPU
        `nn.flash_cache.in_kernel`.
      remat: wraps the body of one layer, e.g. `jax.checkpoint` with a policy.
    """

    def __init__(
        self, config: LMConfig, *, attend=attention_ops.attention, recall=at_once,
        remat=keep_all, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.config = config
        self.attend = attend
        self.recall = recall
        self.remat = remat
        d, init = config.hidden_size, normal(config.initializer_range)

        def block(rngs):
            return Block(
                d, config.intermediate_size, config.num_attention_heads,
                config.num_key_value_heads, config.head_dim, eps=config.rms_norm_eps,
                init_std=config.initializer_range, rngs=rngs,
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

        def look(q, k, v):
            return self.attend(q, k, v, mask)

        def body(layer, x, _):
            return layer(x, rotation, look)[0], None

        run = functools.partial(scan_layers, body=body, remat=self.remat)
        h, _ = run(self.trunk, x)
        text = audio = None
        if TEXT in channels:
            text, _ = run(self.text_branch, h)
            text = self.text_norm(text)
        if AUDIO in channels:
            audio, _ = run(self.audio_branch, h)
            audio = self.audio_norm(audio)
        return Hidden(text, audio)

    def logits(self, hidden: Hidden) -> Logits:
        """Both heads; the logits keep the dtype of the activations."""
        axes = ('batch', 'time', 'vocab')
        return Logits(
            constrain(self.text_head(hidden.text), axes),
            constrain(self.audio_head(hidden.audio), axes),
        )

    def __call__(self, tokens: jax.Array, positions: jax.Array, mask: Mask) -> Logits:
        return self.logits(self.hidden(tokens, positions, mask))

    def extend(
        self, tokens: jax.Array, count: jax.Array, cache: Cache, first: jax.Array | int = 0
    ) -> tuple[Hidden, Cache]:
        """Reads more rows of some lanes, with both branches: prompts or pieces of them.

        Args:
          tokens: (n, t, 2) int32; the rows behind the real ones are padding.
          count: (n,) int32, real rows of each lane, 0 to t.
          cache: what came before, with slots for t more rows in these lanes, and no branch of
            theirs waiting (`waiting.catch_up`). Without the slots the last ones are overwritten.
          first: the lanes are first to first + n - 1.

        Returns:
          (branch outputs (n, t, d) of the new rows, the longer cache). Outputs of padding rows are
          finite and meaningless.
        """
        h, cache = self.read(tokens, count, cache, first)
        text, new_text = self.branch('text', h, cache.text, first)
        audio, new_audio = self.branch('audio', h, cache.audio, first)
        return Hidden(text, audio), dataclasses.replace(
            cache, text=cache.text.longer(new_text, count, first),
            audio=cache.audio.longer(new_audio, count, first),
        )

    def read(
        self, tokens: jax.Array, count: jax.Array, cache: Cache, first: jax.Array | int = 0
    ) -> tuple[jax.Array, Cache]:
        """The trunk alone, as `extend`: (trunk outputs (n, t, d), cache with a longer trunk)."""
        h, new = self._run(self.trunk, self.embed(tokens), cache.trunk, first)
        return h, dataclasses.replace(cache, trunk=cache.trunk.longer(new, count, first))

    def branch(
        self, name: str, h: jax.Array, past: Stack, first: jax.Array | int = 0
    ) -> tuple[jax.Array, KeysValues]:
        """The branch 'text' or 'audio' over trunk outputs h (n, t, d) behind its past.

        Returns:
          (its outputs (n, t, d), what `Stack.longer` is to add to its past).
        """
        layers, norm = {
            'text': (self.text_branch, self.text_norm),
            'audio': (self.audio_branch, self.audio_norm),
        }[name]
        x, new = self._run(layers, h, past, first)
        return norm(x), new

    def _run(
        self, layers: nnx.Module, x: jax.Array, past: Stack, first
    ) -> tuple[jax.Array, KeysValues]:
        """x (n, t, d) through a stack of layers behind what it has read of these lanes."""

        length = lanes(past.length, first, x.shape[0])
        rotation = self.rotation(length[:, None] + jnp.arange(x.shape[1]), x.dtype)
        every, attend = self.recall(past.pair, length, first)

        def body(layer, x, own):
            return layer(x, rotation, lambda q, k, v: attend(q, (k, v), own))

        return scan_layers(layers, x, body, every)


def network(config: LMConfig, **options) -> Network:
    """`describe`s the model: shapes, axes, init and bind without allocating anything.

    Args:
      options: see `LanguageModel`.
    """
    return describe(lambda rngs: LanguageModel(config, **options, rngs=rngs))
