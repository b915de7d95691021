"""Processors against arithmetic by hand and against float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.errors import InputError
from mossjax.infer import sampling
from mossjax.infer.sampling import Channel, Settings

OUT = -np.inf  # a forbidden score


def test_repetition_penalty_by_hand():
    scores = jnp.array([[3.0, -2.0, 0.0, 1.0, OUT]])
    seen = jnp.array([[True, True, True, False, True]])
    found = sampling.repetition_penalty(scores, seen, 2.0)
    np.testing.assert_array_equal(found, [[1.5, -4.0, 0.0, 1.0, OUT]])
    np.testing.assert_array_equal(sampling.repetition_penalty(scores, seen, 1.0), scores)


@pytest.mark.parametrize('made, held', [(0, True), (2, True), (3, False)])
def test_min_new_tokens_holds_the_enders(made, held):
    found = sampling.min_new_tokens(jnp.zeros((1, 4)), made, 3, (1, 3))
    np.testing.assert_array_equal(found, [[0, OUT, 0, OUT] if held else [0] * 4])


def test_top_k_keeps_ties_at_the_border():
    scores = jnp.array([[1.0, 3.0, 2.0, 2.0, 0.0]])
    np.testing.assert_array_equal(sampling.top_k(scores, 2), [[OUT, 3, 2, 2, OUT]])
    np.testing.assert_array_equal(sampling.top_k(scores, 0), scores)
    np.testing.assert_array_equal(sampling.top_k(scores, 9), scores)


def test_top_p_by_hand():
    # exact in binary: the border case mass == 1 - p is dropped
    scores = jnp.log(jnp.array([[0.5, 0.25, 0.125, 0.125]]))
    np.testing.assert_array_equal(np.isfinite(sampling.top_p(scores, 0.7)), [[1, 1, 0, 0]])
    np.testing.assert_array_equal(np.isfinite(sampling.top_p(scores, 0.8)), [[1, 1, 0, 1]])
    np.testing.assert_array_equal(np.isfinite(sampling.top_p(scores, 1e-6)), [[1, 0, 0, 0]])
    np.testing.assert_array_equal(sampling.top_p(scores, 1.0), scores)


def test_warp_against_float64():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(6, 50)) * 4
    channel = Channel(temperature=0.7, top_k=20, top_p=0.9)
    found = np.asarray(jax.nn.softmax(sampling.warp(jnp.float32(scores), channel)))
    for row, got in zip(scores / 0.7, found, strict=True):
        order = np.argsort(row)[::-1][:20]
        mass = np.exp(row[order] - row.max())
        mass /= mass.sum()
        kept = order[: 1 + np.sum(np.cumsum(mass) < 0.9)]
        expected = np.zeros(50)
        expected[kept] = np.exp(row[kept] - row.max())
        np.testing.assert_allclose(got, expected / expected.sum(), atol=2e-6)


def test_greedy_takes_the_lowest_of_equals():
    scores = jnp.array([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(sampling.greedy(scores, Channel(), None), [1, 0])


def test_sample_follows_the_filtered_distribution():
    scores = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
    n = 20000
    drawn = sampling.sample(
        jnp.tile(scores, (n, 1)), Channel(temperature=0.5, top_k=3), sampling.row_keys(0, n)
    )
    counts = np.bincount(drawn, minlength=4) / n
    expected = np.array([0.16, 0.09, 0.04, 0.0]) / 0.29
    # five standard deviations of a binomial frequency
    assert np.all(np.abs(counts - expected) <= 5 * np.sqrt(0.25 / n)) and counts[3] == 0


def test_row_keys_do_not_depend_on_the_batch():
    one, many = sampling.row_keys(3, 1), sampling.row_keys(3, 4)
    assert one[0] == many[0] and len(set(map(str, jax.random.key_data(many)))) == 4


def test_settings_from_generation_config():
    assert Settings.of({}) == Settings()
    assert Settings.of({'temperature': 0, 'do_sample': False}).text == Settings().text
    found = Settings.of(
        {
            'temperature': 0.5, 'top_p': 0.8, 'max_new_tokens': 9, 'do_sample': False,
            'layers': [{}, {'temperature': 0.9, 'top_k': 3, 'repetition_penalty': 1.0}],
        }
    )  # fmt: skip
    assert found.text == Channel(0.5, 20, 0.8, 1.1)
    assert found.audio == Channel(0.9, 3, 0.8, 1.0)
    assert (found.max_new_tokens, found.min_new_tokens) == (9, 0)
    assert found.draw is sampling.greedy


@pytest.mark.parametrize(
    'config, word',
    [
        ({'temperature': 0}, 'temperature'),
        ({'top_k': -1}, 'top_k'),
        ({'top_p': 1.5}, 'top_p'),
        ({'repetition_penalty': 0}, 'repetition_penalty'),
        ({'max_new_tokens': 0}, 'max_new_tokens'),
        ({'min_new_tokens': 600}, 'min_new_tokens'),
        ({'layers': [{}]}, 'layers'),
        ({'layers': 5}, 'layers'),
        ({'temperature': 'hot'}, "temperature is 'hot', expected a number"),
        ({'temperature': math.inf}, 'temperature is inf'),
        ({'temperature': 1e-300}, 'temperature is 1e-300'),  # 0 in float32
        ({'layers': [{}, {'temperature': math.nan}]}, 'temperature is nan'),
        ({'top_k': 2.5}, 'top_k is 2.5, expected a whole number'),
        ({'top_k': 10**24}, 'top_k is 10+, expected'),
        ({'repetition_penalty': 1e300}, 'repetition_penalty'),
        ({'max_new_tokens': True}, 'max_new_tokens'),
        ({'max_new_tokens': 1e3}, 'max_new_tokens is 1000.0, expected a whole'),
        ({'do_sample': 'no'}, "do_sample is 'no', expected true or false"),
        ({'do_sample': 0}, 'do_sample is 0'),
        ({'do_sample': []}, 'do_sample'),
    ],
)
def test_settings_out_of_range_are_refused(config, word):
    with pytest.raises(InputError, match=f'generation_config.json: {word}'):
        Settings.of(config)
