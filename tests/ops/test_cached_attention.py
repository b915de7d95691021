"""Attention over a cache against float64 numpy: in blocks, at once, and by a kernel for TPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.nn.flash_cache import interpreted
from mossjax.nn.shard import sharding_scope
from mossjax.ops.cached_attention import at_once, in_blocks
from mossjax.ops.quant import Int8, quantise_rows
from mossjax.parallel import rules
from mossjax.parallel.mesh import MeshConfig, make_mesh

LANES, LAYERS, KV, GROUP, HEAD, SLOTS, NEW = 4, 3, 2, 2, 128, 700, 5
LAYER, FIRST = 1, 1
# Of the lanes from FIRST on. The kernel's blocks are of 512 slots: none, one and a cut one (which
# ends beyond the cache), one cut.
LENGTHS = np.array([0, 690, 130], np.int32)
WAYS = {'at_once': at_once, 'in_blocks': in_blocks, 'in_kernel': interpreted}


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
    q, *rest = (np.asarray(x, np.float64) for x in (q, *new, *cache))
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(q.shape[:3]):
        keys, values = (
            np.concatenate([old[LAYER, FIRST + b, n // GROUP, : lengths[b]],
                            x[b, : t + 1, n // GROUP]])
            for old, x in zip(rest[2:], rest[:2], strict=True)
        )  # fmt: skip
        out[b, t, n] = softmax(keys @ q[b, t, n] / HEAD**0.5) @ values
    return out


@pytest.fixture(params=WAYS.values(), ids=list(WAYS))
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
    alone, beside = (attend(*given, np.array([3, n, 130], np.int32)) for n in (0, 690))
    np.testing.assert_array_equal(alone[0], beside[0])
    np.testing.assert_array_equal(alone[2], beside[2])


def test_int8_rows_are_their_scale_times_integers(given, attend):
    q, new, cache = given
    held = tuple(Int8(*quantise_rows(jnp.asarray(x)), 'float32') for x in cache)
    plain = tuple(np.asarray(x.astype(np.float32)) for x in held)
    found = attend(q, new, held, LENGTHS)
    np.testing.assert_allclose(found, expected(q, new, plain, LENGTHS), atol=2e-6)


def test_what_lies_behind_a_length_is_never_seen(given, attend):
    q, new, cache = given
    spoilt = tuple(x.copy() for x in cache)
    for i, length in enumerate(LENGTHS):
        for x in spoilt:
            x[:, FIRST + i, :, length:] = 1e4
    np.testing.assert_array_equal(attend(q, new, spoilt, LENGTHS), attend(q, new, cache, LENGTHS))


@pytest.mark.parametrize('small', [False, True], ids=['float32', 'int8'])
def test_the_kernel_runs_once_per_device_on_its_own_heads(given, small):
    q, new, cache = given
    if small:
        cache = tuple(Int8(*quantise_rows(jnp.asarray(x)), 'float32') for x in cache)

    def attended(mesh):
        def run(q, new, cache, lengths):
            with sharding_scope(mesh, rules.resolver(rules.preset('fsdp_tensor'))):
                return interpreted(cache, lengths, FIRST)[1](q, new, jnp.asarray(LAYER))

        return jax.jit(run)(q, new, cache, LENGTHS)

    divided, whole = (
        attended(make_mesh(MeshConfig(fsdp=1, tensor=n), jax.devices()[:n])) for n in (2, 1)
    )
    assert not divided.sharding.is_fully_replicated
    np.testing.assert_allclose(divided, whole, atol=1e-6)
