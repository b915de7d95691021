"""Attention off the TPU: cuDNN's fused kernels where they take it, the reference elsewhere.

Same arguments as `ops.attention.attention`. cuDNN keeps the scores out of memory; a mask beyond
causality is handed to it as a bias of (b, 1, t, s) in the operands' type.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp

from mossjax.ops.attention import Mask, attention

LARGEST_HEAD = 128
_AMPERE = 8.0


def fused(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, *,
    bias: jax.Array | None = None, scale: float | None = None,
) -> jax.Array:
    """See `ops.attention.attention`; a query that sees no key gets zeros here too."""
    if not takes(q, k, v, bias):
        return attention(q, k, v, mask, bias=bias, scale=scale)
    causal = mask.causal and isinstance(mask.q_offset, int) and mask.q_offset == 0
    rest = dataclasses.replace(mask, causal=mask.causal and not causal)
    seen = None if rest == Mask() else rest.visible(q.shape[1], k.shape[1])
    out = jax.nn.dot_product_attention(
        q, k, v, mask=None if seen is None else seen[:, None], scale=scale, is_causal=causal,
        implementation='cudnn',
    )  # fmt: skip
    if seen is None:
        return out
    some = mask.visible(q.shape[1], k.shape[1]).any(-1)
    return jnp.where(some[..., None, None], out, 0)


def takes(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None,
    device: jax.Device | None = None,
) -> bool:
    """Does cuDNN take these, on a device (the default one)? Not float32, a bias (its gradient), an
    odd number of positions, nor a head size that is no multiple of 8 or above 128."""
    short = all(x.dtype in (jnp.bfloat16, jnp.float16) for x in (q, k, v))
    even = q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0
    fits = q.shape[3] % 8 == 0 and q.shape[3] <= LARGEST_HEAD
    return bias is None and short and even and fits and _modern(device or jax.devices()[0])


def _modern(device: jax.Device) -> bool:
    """An NVIDIA GPU of the Ampere generation or later; AMD's are named otherwise."""
    capability = str(getattr(device, 'compute_capability', ''))
    return bool(re.fullmatch(r'\d+\.\d+', capability)) and float(capability) >= _AMPERE
