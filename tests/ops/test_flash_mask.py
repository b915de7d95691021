"""The kernels' schedule against masks written out in full."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.ops import flash_mask
from mossjax.ops.attention import Mask
from mossjax.ops.flash_blocks import BACKWARD, FORWARD, Blocks

T, S = 500, 700
BLOCKS = Blocks(columns=256, strip=128, keys=128, rows=128, resident=256)
FIT = BLOCKS.fit(2, T, S)


def packed(rng, rows: int, length: int, shared: bool):
    """Numbers of examples laid end to end, padding 0 behind them; cut anew for each row."""
    out = np.zeros((rows, length), np.int32)
    for row in out:
        cuts = np.sort(rng.choice(np.arange(40, length - 40), 3, replace=False))
        for number, (start, end) in enumerate(zip(cuts[:-1], cuts[1:], strict=True), 1):
            row[start:end] = number
        row[: cuts[0]] = 7 if shared else 0
    return jnp.asarray(out)


def masks(rng) -> dict[str, Mask]:
    q_segments = packed(rng, 2, T, shared=False)
    kv_segments = packed(rng, 2, S, shared=True)
    valid = jnp.asarray(np.arange(S) < np.array([[130], [590]]))
    return {
        'plain': Mask(),
        'causal': Mask(causal=True),
        'causal, offset': Mask(causal=True, q_offset=jnp.int32(170)),
        'chunks': Mask(chunk=70),
        'segments': Mask(causal=True, q_segments=q_segments, kv_segments=kv_segments),
        'lengths': Mask(kv_valid=valid),
        'all': Mask(True, 90, q_segments, kv_segments, valid, 60),
        'nothing': Mask(kv_valid=jnp.zeros((2, S), bool)),
    }


@jax.jit
def planned(mask: Mask):
    """(schedule, kinds of the blocks in it)."""
    plan = flash_mask.schedule(flash_mask.sight(mask, T, S), FIT)
    padded = flash_mask.Sight(plan.q_segments[:, 0], plan.kv_segments[:, 0], plan.limit[:, 0])
    return plan, flash_mask.block_kinds(padded, FIT)


def written_out(mask: Mask) -> np.ndarray:
    """(r, tiles, positions, blocks, keys) bool; a query of the padding sees what the last one
    sees, no query sees keys of the padding."""
    seen = np.asarray(mask.visible(T, S))
    seen = np.pad(seen, ((0, 0), (0, FIT.t - T), (0, 0)), 'edge')
    seen = np.pad(seen, ((0, 0), (0, 0), (0, FIT.s - S)))
    return seen.reshape(len(seen), FIT.tiles, FIT.positions, FIT.visits * FIT.loads, FIT.keys)


def test_blocks_are_whole_or_empty_exactly_where_the_mask_says(rng):
    for name, mask in masks(rng).items():
        seen = written_out(mask)
        want = np.where(
            ~seen.any((2, 4)), flash_mask.EMPTY,
            np.where(seen.all((2, 4)), flash_mask.FULL, flash_mask.CUT),
        )
        kinds = np.asarray(planned(mask)[1])
        # A segment of the queries that no key has may lie between segments of the keys.
        assert np.all((kinds == want) | ((kinds == flash_mask.CUT) & (want == flash_mask.EMPTY)))
        if name not in ('segments', 'all'):
            np.testing.assert_array_equal(kinds, np.broadcast_to(want, kinds.shape), name)


def test_every_block_that_is_not_empty_is_visited_once_cut_ones_first(rng):
    for mask in masks(rng).values():
        plan, kinds = planned(mask)
        visits, kinds = np.asarray(plan.visits), np.asarray(kinds)
        kinds = kinds.reshape(*kinds.shape[:2], FIT.loads, FIT.visits)
        for at in np.ndindex(kinds.shape[:3]):
            cut, visited, *order = visits[at][0]
            parts = order[:cut], order[cut:visited]
            for kind, blocks in zip((flash_mask.CUT, flash_mask.FULL), parts, strict=True):
                np.testing.assert_array_equal(blocks, np.flatnonzero(kinds[at] == kind))
        full, cut = flash_mask.visited(mask, FIT, T, S)
        np.testing.assert_array_equal(full, (kinds == flash_mask.FULL).sum((1, 2, 3)))
        np.testing.assert_array_equal(cut, (kinds == flash_mask.CUT).sum((1, 2, 3)))


def test_keys_are_loaded_only_for_visits(rng):
    """Causal: a tile needs the loads up to its diagonal, then the last one stays."""
    plan, _ = planned(Mask(causal=True))
    last = ((np.arange(FIT.tiles) + 1) * FIT.positions - 1) // FIT.resident
    want = np.minimum(np.arange(FIT.loads)[None], last[:, None])
    np.testing.assert_array_equal(plan.load[0], want)


@pytest.mark.parametrize('t', [8192, 14336])
@pytest.mark.parametrize('generation', FORWARD)
def test_visits_of_a_causal_row_of_the_released_model(generation, t):
    """4 query heads a group: the lower triangle of squares of 512, or of halves of them."""
    for blocks in (FORWARD[generation], BACKWARD[generation]):
        fit = blocks.fit(4, t, t)
        assert (fit.t, fit.s) == (t, t)  # nothing is padded
        full, cut = flash_mask.visited(Mask(causal=True), fit, t, t)
        tiles, ratio = t // fit.positions, fit.keys // fit.positions
        assert (fit.keys, ratio) in ((512, 1), (512, 2))
        assert int(cut[0]) == tiles
        assert int(full[0]) == sum(i // ratio for i in range(tiles))


@pytest.mark.parametrize('group', [1, 2, 3, 4, 5, 7, 8, 16])
@pytest.mark.parametrize('shape', [(1, 1), (100, 1500), (1500, 1500), (8192, 8192), (300, 40000)])
def test_sizes_fit_every_shape(group, shape):
    for blocks in {*FORWARD.values(), *BACKWARD.values()}:
        fit = blocks.fit(group, *shape)
        assert fit.t >= shape[0] > fit.t - fit.positions
        assert fit.s >= shape[1] and fit.s - shape[1] < fit.keys * fit.loads
        assert fit.strips % 2 == 0 and fit.strip * fit.strips == fit.columns
        assert fit.strip % fit.positions == 0 or fit.positions % fit.strip == 0
        assert fit.resident <= blocks.resident and fit.keys % fit.rows == 0
        assert fit.positions % 128 == fit.strip % 128 == fit.keys % 128 == fit.rows % 128 == 0
