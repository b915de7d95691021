"""The encoder on a stream: block after block of codes, with keys and values of those before.

The keys of a layer lie in one array, ordered and flush right: nothing yet | voice | the last codes.
So the distances of a block to them are the same numbers at every step, and once the oldest codes
have been dropped the voice stands directly before those that are left.

All of one session: arrays have no axis for sessions.
"""

import jax
import jax.numpy as jnp

from mossjax.models.flow.config import FlowConfig, Window
from mossjax.models.flow.encoder import Encoder
from mossjax.nn.param import scan_layers
from mossjax.ops.attention import Mask
from mossjax.ops.conv import conv1d


def empty(config: FlowConfig, window: Window) -> dict:
    """What is known before the first code: nothing, in arrays of their final shapes."""
    c, slots = config, window.voice + window.past

    def pair(layers, s):
        shape = (layers, s, c.heads, c.width // c.heads)
        return jnp.zeros(shape), jnp.zeros(shape)

    return {
        'lookahead': jnp.zeros((1, 2, c.width)), 'upsample': jnp.zeros((1, 2, c.width)),
        'blocks': pair(c.blocks, slots), 'up_blocks': pair(c.up_blocks, c.ratio * slots),
    }  # fmt: skip


def advance(
    encoder: Encoder, past: dict, window: Window, x: jax.Array, seen: jax.Array, fed: jax.Array,
    codes: jax.Array, voice: jax.Array,
) -> tuple[dict, jax.Array]:
    """One block of the mask. The counts are scalars.

    Args:
      past: of `empty` or the step before.
      x: (e + lookahead, input_size) embedded codes: the block, then its look-ahead.
      seen: how many of them exist. fed: how many of the first e are new, may be 0.
      codes: fed before. voice: of all codes, how many are the voice's.

    Returns:
      (past, (ratio * e, width) frames, rubbish after the first ratio * fed).
    """
    r, kept = encoder.ratio, {}
    x = jnp.where((jnp.arange(len(x)) < seen)[:, None], encoder.embed(x), 0)[None]
    x, kept['lookahead'] = _look_ahead(encoder.lookahead, x, past['lookahead'], fed)
    x, kept['blocks'] = _run(encoder.blocks, x, past['blocks'], window, fed, codes, voice, 1)
    x = jnp.concatenate([past['upsample'], x], axis=1)
    kept['upsample'] = last(x, fed)
    x = encoder.up_embed(unpadded(encoder.upsample, jnp.repeat(x, r, axis=1)))
    x, kept['up_blocks'] = _run(
        encoder.up_blocks, x, past['up_blocks'], window, fed, codes, voice, r
    )
    return kept, encoder.norm(x)[0]


def last(x: jax.Array, fed: jax.Array) -> jax.Array:
    """(b, 2 + t, c), two old frames and new ones -> (b, 2, c): what ends with the fed-th new."""
    return jax.lax.dynamic_slice_in_dim(x, fed, 2, axis=1)


def unpadded(conv, x: jax.Array) -> jax.Array:
    """A convolution on frames that already stand beside their neighbours."""
    return conv1d(x, conv.kernel[...]) + conv.bias[...].astype(x.dtype)


def _look_ahead(layer, x, past, fed):
    y = jax.nn.leaky_relu(unpadded(layer.conv1, x), 0.01)
    joined = jnp.concatenate([past, y], axis=1)
    return x[:, : y.shape[1]] + unpadded(layer.conv2, joined), last(joined, fed)


def _run(blocks, x, past, window: Window, fed, codes, voice, ratio: int):
    """One stack of conformer blocks; ratio: its positions per code."""
    slots, t = past[0].shape[1], x.shape[1]
    before, after = (ratio * window.held(n, voice) for n in (codes, codes + fed))
    exist = jnp.concatenate(
        [jnp.arange(slots) >= slots - before, jnp.arange(t) < ratio * fed]
    )  # fmt: skip

    def body(block, x, past):
        x, own = block.extend(x, Mask(kv_valid=exist[None]), tuple(y[None] for y in past))
        return x, tuple(y[0] for y in own)

    x, own = scan_layers(blocks, x, body, past)
    # Which of the old slots and the new positions stand in the slots afterwards: the voice's where
    # it began, all others the last ones.
    slot = jnp.arange(slots)
    in_voice = slot < slots - after + ratio * jnp.minimum(codes + fed, voice)
    order = jnp.clip(slot + jnp.where(in_voice, after - before, ratio * fed), 0)
    joined = (jnp.concatenate(pair, axis=1) for pair in zip(past, own, strict=True))
    return x, tuple(keys[:, order] for keys in joined)
