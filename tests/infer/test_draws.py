"""Draws of many lanes at once, against the plain draw of each."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.infer import draws, sampling
from mossjax.infer.draws import LaneSettings
from mossjax.infer.sampling import Channel, Settings, row_keys

SIZE = 9001  # no multiple of a block, more blocks than candidates


@pytest.fixture
def scores(rng):
    """Some rows full of ties, some with forbidden ids, one with few ids that are not."""
    found = rng.normal(size=(4, SIZE)).astype(np.float32)
    found[1] = np.round(found[1], 1)
    found[2, rng.random(SIZE) < 0.9] = -np.inf
    found[3, 5:-1] = -np.inf
    return found


@pytest.mark.parametrize('count', [1, 20, 64])
def test_the_largest_are_those_of_a_stable_sort(scores, count):
    values, ids = jax.jit(draws.largest, static_argnums=1)(scores, count)
    want = np.argsort(-scores, axis=1, kind='stable')[:, :count]
    np.testing.assert_array_equal(values, np.take_along_axis(scores, want, axis=1))
    finite = np.isfinite(np.asarray(values))
    np.testing.assert_array_equal(np.where(finite, ids, -1), np.where(finite, want, -1))
    assert finite.sum() == 3 * count + min(count, 6) and np.max(ids) < SIZE


def test_a_vocabulary_is_not_sorted():
    """What a TPU sorts: maxima of blocks, the chosen blocks, what they hold."""
    text = jax.jit(draws.largest, static_argnums=1).lower(
        jax.ShapeDtypeStruct((1, 151_680), jnp.float32), 64
    ).as_text()
    assert 'tensor<1x2370xf32>' in text and 'tensor<1x4096xf32>' in text
    for line in text.splitlines():
        assert not ('top_k' in line or 'sort' in line) or '151680' not in line


@pytest.mark.parametrize('draw', [draws.narrow, draws.narrow_on_cpu, draws.wide])
def test_each_lane_draws_as_it_would_alone(scores, draw):
    """Settings, keys and greediness of its own."""
    channels = [Channel(0.7, 20, 0.95), Channel(1.3, 64, 0.5), Channel(2.0, 3, 1.0),
                Channel(1.0, 40, 0.99)]  # fmt: skip
    settings = [Settings(c, c) for c in channels]
    settings[3] = dataclasses.replace(settings[3], draw=sampling.greedy)
    run = jax.jit(draw)
    for seed in range(5):
        keys = row_keys(seed, 4)
        lanes = LaneSettings.of(settings, keys, [True] * 4)
        found = run(scores, lanes.text, lanes.greedy, keys)
        want = [
            one.draw(scores[i : i + 1], one.text, keys[i : i + 1])[0]
            for i, one in enumerate(settings)
        ]
        np.testing.assert_array_equal(found, np.stack(want))
