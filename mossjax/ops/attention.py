"""Attention with the mask as data: one signature for every network and every implementation.

`attention` is the reference: it materialises the scores, follows the formula line by line and is
what all other implementations are tested against. Faster ones take the same arguments.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=['q_segments', 'kv_segments', 'kv_valid', 'q_offset'],
    meta_fields=['causal', 'chunk'],
)
@dataclasses.dataclass(frozen=True)
class Mask:
    """Which keys a query may see; all conditions that are given must hold.

    Attributes:
      causal: key index <= query index.
      chunk: block-causal: a query sees all keys up to the end of its own chunk of this many
        positions, and everything before (unlimited left context).
      q_segments, kv_segments: (b, t) and (b, s) int32; equal numbers may see each other. Give both
        or neither (packed examples, padding as segment 0).
      kv_valid: (b, s) bool; False hides a key (padding, unwritten cache slots).
      q_offset: index of the first query on the key axis (cached decoding), a scalar.
    """

    causal: bool = False
    chunk: int | None = None
    q_segments: jax.Array | None = None
    kv_segments: jax.Array | None = None
    kv_valid: jax.Array | None = None
    q_offset: jax.Array | int = 0

    def visible(self, t: int, s: int) -> jax.Array:
        """bool (b or 1, t, s): True where the query may see the key."""
        q = jnp.arange(t)[:, None] + self.q_offset
        k = jnp.arange(s)[None, :]
        seen = jnp.ones((1, t, s), bool)
        if self.causal:
            seen &= (k <= q)[None]
        if self.chunk is not None:
            seen &= (k < (q // self.chunk + 1) * self.chunk)[None]
        if self.q_segments is not None:
            seen &= self.q_segments[:, :, None] == self.kv_segments[:, None, :]
        if self.kv_valid is not None:
            seen &= self.kv_valid[:, None, :]
        return seen


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Mask,
    *,
    bias: jax.Array | None = None,
    scale: float | None = None,
) -> jax.Array:
    """softmax(scale * q k^T + bias) v over the visible keys; scores and softmax in float32.

    Args:
      q: (b, t, n, h). k, v: (b, s, k, h) with n a multiple of k: query head i reads kv head i // g.
      mask: which keys are visible. A query that sees none gets zeros, not NaN.
      bias: added to the scaled scores, broadcastable to (b, n, t, s).
      scale: 1 / sqrt(h) by default.

    Returns:
      (b, t, n, h) in q.dtype.
    """
    b, t, n, h = q.shape
    s, kv_heads = k.shape[1], k.shape[2]
    scale = h**-0.5 if scale is None else scale
    grouped = q.reshape(b, t, kv_heads, n // kv_heads, h)
    scores = jnp.einsum('btkgh,bskh->bkgts', grouped, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(b, n, t, s) * scale
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    visible = mask.visible(t, s)[:, None]
    weights = jax.nn.softmax(jnp.where(visible, scores, jnp.finfo(jnp.float32).min), axis=-1)
    weights = jnp.where(visible, weights, 0.0).astype(v.dtype)
    out = jnp.einsum('bkgts,bskh->btkgh', weights.reshape(b, kv_heads, n // kv_heads, t, s), v)
    return out.reshape(b, t, n, h)
