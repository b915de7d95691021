"""Bounds on attention scores from the norms' gains, against rows made as large as they can be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.convert import certificate
from mossjax.models.lm import bounds
from mossjax.models.lm.model import network
from mossjax.ops import norms
from mossjax.ops.flash_forward import BOUND
from tests.tiny_lm import tiny_config


def test_no_score_exceeds_the_bound_and_one_reaches_it(rng):
    h = 64
    q_gain, k_gain = rng.normal(size=h), rng.normal(size=h)
    at = np.argmax(np.abs(q_gain))
    k_gain[at] = 1.5 * np.abs(k_gain).max()
    rows = np.concatenate([rng.normal(size=(500, h)), 100 * np.eye(h)[at : at + 1]])
    q, k = (norms.rms_norm(jnp.float32(rows), jnp.float32(g), eps=1e-6) for g in (q_gain, k_gain))
    largest = np.abs(np.asarray(q, np.float64) @ np.asarray(k, np.float64).T).max()
    bound = bounds.score_bound(np.abs(q_gain).max(), np.abs(k_gain).max(), h)
    assert largest * h**-0.5 * np.log2(np.e) == pytest.approx(bound, rel=1e-4)


def test_layers_are_told_apart_in_training_and_in_the_certificate():
    """Layer 1 of the trunk has gains that put its bound above the kernel's, just."""
    config = tiny_config()
    params = jax.tree.map(np.array, network(config).init(jax.random.key(0)))
    h = config.head_dim
    size = (1.01 * BOUND / (h**0.5 * np.log2(np.e))) ** 0.5
    for name in ('q_norm', 'k_norm'):
        params['trunk']['attn'][name]['scale'][1] = -size
    found = bounds.bounded(params)
    want = np.arange(config.num_shared_layers) != 1
    np.testing.assert_array_equal(found['trunk'], want)
    assert np.all(found['text_branch']) and np.all(found['audio_branch'])

    entries = {}
    for layer in range(config.num_shared_layers):
        for name in ('q_norm', 'k_norm'):
            gains = params['trunk']['attn'][name]['scale'][layer]
            entries[f'model.shared_block.layers.{layer}.self_attn.{name}.weight'] = (
                certificate.describe(gains)
            )
    roads = certificate.attention_roads(entries)
    assert roads == {
        'known_maximum': config.num_shared_layers - 1,
        'online': {'model.shared_block.layers.1': pytest.approx(1.01 * BOUND, abs=0.1)},
    }
    assert certificate.attention_roads({'encoder.weight': certificate.describe(gains)}) == {}
