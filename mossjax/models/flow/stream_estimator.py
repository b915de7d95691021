"""The velocity network on a stream: frames after frames, at one Euler step of several.

A transformer keeps what its attention reads, the normed input (c numbers a frame), and not keys and
values (2 n h numbers, four times as many in the released model): q (W_k x) = (q W_k) x, and the
weighted sum of values is W_v of the weighted sum of inputs. All heads then read the same array.

All of one session: the leading axis of arrays are the sides of guidance, with and without
conditions.
"""

import jax
import jax.numpy as jnp

from mossjax.models.flow.config import FlowConfig, Window
from mossjax.models.flow.estimator import Estimator, embed_time, mish
from mossjax.models.flow.stream_encoder import last, unpadded
from mossjax.nn.param import depth, scan_layers


def empty(config: FlowConfig, window: Window, steps: int, sides: int) -> tuple[jax.Array, dict]:
    """What is known before the first frame.

    Returns:
      (inputs of the attentions, (steps, transformers, sides, slots, c), slots = frames of voice and
      past; the last two inputs of each convolution, (steps, [stages,] sides, 2, c_in)).
    """
    c, m, stages = config.channels, config.mels, config.mid_blocks
    slots = config.ratio * (window.voice + window.past)

    def tail(width, *lead):
        return jnp.zeros((steps, *lead, sides, 2, width))

    def resnet(width, *lead):
        return {'block1': tail(width, *lead), 'block2': tail(c, *lead)}

    return jnp.zeros((steps, (stages + 2) * config.transformers, sides, slots, c)), {
        'down': resnet(4 * m), 'down_conv': tail(c), 'mid': resnet(c, stages),
        'up': resnet(2 * c), 'up_conv': tail(c), 'final_block': tail(c),
    }  # fmt: skip


def velocity(
    net: Estimator, tails: dict, seen, fed: jax.Array, visible: jax.Array, x: jax.Array,
    mu: jax.Array, t: jax.Array, speaker: jax.Array, cond: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, dict]]:
    """The estimator's velocity of new frames.

    Args:
      tails: of `empty`, at this Euler step. seen: the number of a transformer -> (sides, slots, c).
      fed: how many frames exist. visible: (t, slots + t) bool.
      x, mu, t, speaker, cond: see `Estimator`, of the new frames.

    Returns:
      (velocity (sides, t, m), (inputs of the attentions (transformers, sides, t, c), tails)).
    """
    time = embed_time(t, net.time_in.kernel.shape[0]).astype(x.dtype)
    time = net.time_out(jax.nn.silu(net.time_in(time)))
    go, kept = _Advance(seen, fed, visible, time), {}
    speaker = jnp.broadcast_to(speaker[:, None], x.shape)
    h = jnp.concatenate([x, mu, speaker, cond], axis=-1)
    skip, first, kept['down'] = go.stage(net.down, h, tails['down'], 0)
    h, kept['down_conv'] = go.conv(net.down_conv, skip, tails['down_conv'])
    each, stages = len(first), depth(net.mid)

    def middle(stage, h, given):
        h, inputs, tails = go.stage(stage, h, *given)
        return h, (inputs, tails)

    starts = each * (1 + jnp.arange(stages))
    h, (mid, kept['mid']) = scan_layers(net.mid, h, middle, (tails['mid'], starts))
    both = jnp.concatenate([h, skip], axis=-1)
    h, final, kept['up'] = go.stage(net.up, both, tails['up'], each * (1 + stages))
    h, kept['up_conv'] = go.conv(net.up_conv, h, tails['up_conv'])
    h, kept['final_block'] = go.block(net.final_block, h, tails['final_block'])
    inputs = jnp.concatenate([first, mid.reshape(-1, *first.shape[1:]), final])
    return net.final(h) * go.valid, (inputs, kept)


class _Advance:
    """How each part of the network goes on from what it knows; arguments as of `velocity`."""

    def __init__(self, seen, fed: jax.Array, visible: jax.Array, time: jax.Array):
        self.seen, self.fed, self.visible, self.time = seen, fed, visible, time
        self.valid = (jnp.arange(len(visible)) < fed)[:, None].astype(time.dtype)

    def conv(self, layer, x, tail):
        joined = jnp.concatenate([tail, x * self.valid], axis=1)
        return unpadded(layer, joined), last(joined, self.fed)

    def block(self, layer, x, tail):
        x, tail = self.conv(layer.conv, x, tail)
        return mish(layer.norm(x)) * self.valid, tail

    def resnet(self, layer, x, tails):
        y, first = self.block(layer.block1, x, tails['block1'])
        y = y + layer.time(mish(self.time))[:, None]
        y, second = self.block(layer.block2, y, tails['block2'])
        return y + layer.shortcut(x * self.valid), {'block1': first, 'block2': second}

    def stage(self, layer, x, tails, number):
        """number: of its first transformer."""
        x, tails = self.resnet(layer.resnet, x, tails)
        numbers = number + jnp.arange(depth(layer.transformers))
        x, inputs = scan_layers(layer.transformers, x, self.transformer, numbers)
        return x, inputs, tails

    def transformer(self, layer, x, number):
        h = layer.attention_norm(x)
        keys = jnp.concatenate([self.seen(number), h], axis=1)
        return layer.forward(x + self._attend(layer.attention, h, keys)), h

    def _attend(self, layer, h, keys):
        k, v = layer.k[...], layer.v[...]
        query = jnp.einsum('btnh,cnh->btnc', layer.heads(h, 'q'), k) * k.shape[-1] ** -0.5
        scores = jnp.einsum('btnc,bsc->btns', query, keys)
        visible = self.visible[:, None]
        scores = jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
        weights = jnp.where(visible, jax.nn.softmax(scores, axis=-1), 0)
        mixed = jnp.einsum('btns,bsc->btnc', weights, keys)
        return layer.merge(jnp.einsum('btnc,cnh->btnh', mixed, v))
