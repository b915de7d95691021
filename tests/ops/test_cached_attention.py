"""Attention over a cache against float64 numpy, in blocks and at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.ops.cached_attention import at_once, in_blocks
from mossjax.ops.quant import Int8, quantise_rows

LANES, LAYERS, KV, GROUP, HEAD, SLOTS, NEW = 4, 3, 2, 2, 8, 300, 5
LAYER, FIRST = 1, 1
LENGTHS = np.array([0, 290, 130], np.int32)  # of the lanes from FIRST on


@pytest.fixture
def given(rng):
    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    count = len(LENGTHS)
    cache = tuple(draw(LAYERS, LANES, KV, SLOTS, HEAD) for _ in range(2))
    new = tuple(draw(count, NEW, KV, HEAD) for _ in range(2))
    return draw(count, NEW, KV * GROUP, HEAD), new, cache


def softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def expected(q, new, cache, lengths):
    """One query after another, in float64."""
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(q.shape[:3]):
        keys, values = (
            np.concatenate([old[LAYER, FIRST + b, n // GROUP, : lengths[b]],
                            x[b, : t + 1, n // GROUP]]).astype(np.float64)
            for old, x in zip(cache, new, strict=True)
        )  # fmt: skip
        out[b, t, n] = softmax(keys @ q[b, t, n].astype(np.float64) / HEAD**0.5) @ values
    return out


@pytest.fixture(params=[at_once, in_blocks], ids=lambda recall: recall.__name__)
def attend(request):
    """(q, new, cache, lengths) -> attended, in one way to read the cache."""

    @jax.jit
    def run(q, new, cache, lengths):
        layers, look = request.param(cache, lengths, FIRST)
        return look(q, new, jax.tree.map(lambda x: x[LAYER], layers))

    return run


def test_every_way_to_read_is_the_formula(given, attend):
    want = expected(*given, LENGTHS)
    np.testing.assert_allclose(attend(*given, LENGTHS), want, atol=2e-6)


def test_a_longer_neighbour_changes_no_bit(given, attend):
    alone, beside = (attend(*given, np.array([3, n, 130], np.int32)) for n in (0, 290))
    np.testing.assert_array_equal(alone[0], beside[0])
    np.testing.assert_array_equal(alone[2], beside[2])


def test_int8_rows_are_their_scale_times_integers(given, attend):
    q, new, cache = given
    held = tuple(Int8(*quantise_rows(jnp.asarray(x)), 'float32') for x in cache)
    plain = tuple(np.asarray(x.astype(np.float32)) for x in held)
    found = attend(q, new, held, LENGTHS)
    np.testing.assert_allclose(found, expected(q, new, plain, LENGTHS), atol=2e-6)
