"""Bounds on attention scores that follow from the weights alone.

Queries and keys are normed per head and then only rotated, so a head of size h with gains g has
|q| <= sqrt(h) max|g_q| and |k| alike, and no score exceeds the product of the two. Where it is
small enough, every tile of the flash kernel takes it for the maximum; where it is not, the tile's
own norms decide (`ops.flash_forward`).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mossjax.ops.flash_forward import BOUND
from mossjax.ops.flash_tile import LOG2E

STACKS = ('trunk', 'text_branch', 'audio_branch')


def score_bound(q_gain, k_gain, h: int):
    """Largest score in base 2, scaled by 1 / sqrt(h), under gains of at most these sizes."""
    return q_gain * k_gain * (h**0.5 * LOG2E)


def within(bound):
    """Does it stand for the maximum? A little below what the kernel allows, which measures rows
    that have been rounded."""
    return bound <= BOUND * (1 - 2**-6)


def bounded(params: Mapping) -> dict[str, jax.Array]:
    """For each stack of layers (layers,) bool: do the gains alone bound its scores closely?"""
    found = {}
    for stack in STACKS:
        attn = params[stack]['attn']
        q, k = (attn[name]['scale'].astype(jnp.float32) for name in ('q_norm', 'k_norm'))
        largest = (jnp.max(jnp.abs(x), axis=-1) for x in (q, k))
        found[stack] = within(score_bound(*largest, q.shape[-1]))
    return found
