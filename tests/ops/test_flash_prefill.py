"""A piece of a prompt over a cache by the flash kernel, interpreted with race detection, against
a float64 computation."""

import functools

import jax
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.nn.flash_cache import interpreted
from mossjax.ops import flash_prefill
from mossjax.ops.flash_blocks import Blocks
from mossjax.ops.quant import Int8, quantise_rows
from tests.ops.test_cached_attention import FIRST, GROUP, HEAD, LAYER, expected

LANES, LAYERS, KV, SLOTS, PIECE = 3, 2, 1, 300, 150
LENGTHS = np.array([0, 270], np.int32)  # of the lanes from FIRST on
# Two tiles of queries; three blocks of keys in two loads, the last of which ends behind the cache.
BLOCKS = Blocks(columns=256, strip=512, keys=128, rows=128, resident=256)
LARGEST = {'float32': 1e-5, 'bfloat16': 5e-3}  # of ||difference|| / ||reference||
KINDS = [('float32', False), ('bfloat16', True)]  # and whether the cache is in int8


@pytest.fixture(autouse=True)
def _no_races():
    interpreter.reset_tpu_interpret_mode_state()
    yield
    assert interpreter.races is None or not interpreter.races.races_found


def drawn(rng, dtype, small):
    """Queries, new keys and values, the cache, and that as floats."""

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    count = len(LENGTHS)
    cache = [draw(LAYERS, LANES, KV, SLOTS, HEAD) for _ in range(2)]
    for i, length in enumerate(LENGTHS):  # what is left over behind a length is never seen
        cache = [x.at[:, FIRST + i, :, length:].set(1e4) for x in cache]
    new = tuple(draw(count, PIECE, KV, HEAD) for _ in range(2))
    held = tuple(Int8(*quantise_rows(x), dtype) for x in cache) if small else tuple(cache)
    floats = [x.astype(np.float32) for x in held]
    return draw(count, PIECE, KV * GROUP, HEAD), new, held, floats


@pytest.mark.parametrize(('dtype', 'small'), KINDS)
def test_a_piece_attends_as_the_formula_says(rng, dtype, small):
    q, new, cache, floats = drawn(rng, dtype, small)
    options = pltpu.InterpretParams(detect_races=True, uninitialized_memory='nan')
    run = jax.jit(
        functools.partial(flash_prefill.attend, blocks=BLOCKS, interpret=options),
        compiler_options={'xla_backend_optimization_level': 0},
    )
    found = np.asarray(run(q, new, cache, LENGTHS, LAYER, FIRST), np.float64)
    want = expected(q, new, floats, LENGTHS)
    assert np.linalg.norm(found - want) <= LARGEST[dtype] * np.linalg.norm(want)


def test_many_queries_go_to_this_kernel(rng):
    q, new, cache, _ = drawn(rng, 'bfloat16', small=True)
    attend = interpreted(cache, jnp.asarray(LENGTHS), FIRST)[1]
    many, few = (
        str(jax.make_jaxpr(attend)(q[:, :t], tuple(x[:, :t] for x in new), LAYER))
        for t in (PIECE, 4)
    )
    assert 'flash_prefill_past' in many and 'flash_decode' in few
