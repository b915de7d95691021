"""What our kernels cost, which the compiler does not know: bundles times blocks visited.

A bundle is one cycle of a core without stalls. The table is what `experiments/benchmarks/attention`
reads from the compiler, of attention for blocks of 1024 x 1024 scores of heads of 128, of norm and
rotation for 1024 positions of a head; a test holds it to that record. None costs less than its
bytes in HBM.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools

from mossjax.ops import flash_decode, flash_mask, flash_prefill
from mossjax.ops.attention import Mask
from mossjax.ops.flash_blocks import BACKWARD, FORWARD, LANES, Fit
from mossjax.parallel.chips import CHIPS
from mossjax.plan.hlo import Instruction, arrays

ROADS = ('online', 'bound')  # of the forward kernel, see `ops.flash_forward`
# Of a block that the mask cuts, one that it leaves whole, and of a tile of queries besides.
BUNDLES: dict[str, dict[str, int]] = {
    'v5e': {
        'bound': 4209, 'bound_whole': 4251, 'online': 4301, 'online_whole': 4121,
        'flash_forward_tile': 1415, 'backward': 9182, 'backward_whole': 8842,
        'flash_backward_tile': 3376, 'norm_rope_forward': 976, 'norm_rope_backward': 1324,
    },
    'v5p': {
        'bound': 4259, 'bound_whole': 4267, 'online': 4238, 'online_whole': 4133,
        'flash_forward_tile': 1534, 'backward': 9033, 'backward_whole': 8849,
        'flash_backward_tile': 3506, 'norm_rope_forward': 992, 'norm_rope_backward': 1346,
    },
    'v6e': {
        'bound': 2273, 'bound_whole': 1761, 'online': 2585, 'online_whole': 1977,
        'flash_forward_tile': 1202, 'backward': 4659, 'backward_whole': 4042,
        'flash_backward_tile': 2303, 'norm_rope_forward': 852, 'norm_rope_backward': 1060,
    },
}  # fmt: skip

# Of the decoding kernel, for eight key-value heads of 128 in groups of four: a visit of a block of
# slots, one that a lane's length cuts, and all else in the program, which begins and ends a lane;
# of the kernel for pieces of a prompt, what it does to a block of a head's slots when it comes.
# `experiments/benchmarks/decode` reads them.
DECODE: dict[str, dict[str, int]] = {
    'v5e': {'whole': 710, 'cut': 909, 'rest': 504, 'bring': 131},
    'v5p': {'whole': 717, 'cut': 912, 'rest': 605, 'bring': 132},
    'v6e': {'whole': 709, 'cut': 836, 'rest': 525, 'bring': 111},
}


@dataclasses.dataclass(frozen=True)
class Heads:
    """Attention of one device: lanes or rows, each with heads of size h in groups."""

    rows: int
    kv_heads: int
    group: int
    h: int


def decoding(generation: str, heads: Heads, length: int, itemsize: int) -> dict[str, float]:
    """Cycles of a call of `ops.flash_decode` by its name, for `cycles.Program.seconds`.

    Args:
      generation: a key of DECODE. length: of every lane. itemsize: bytes of a key's number.
    """
    bundles, chip = DECODE[generation], CHIPS[generation]
    whole, over = divmod(length, flash_decode.SLOTS)
    # The rest is charged at every step of the grid, one of which may lie behind the length.
    spent = whole * bundles['whole'] + bool(over) * bundles['cut'] + (whole + 2) * bundles['rest']
    moved = 2 * heads.rows * heads.kv_heads * length * heads.h * itemsize
    return {
        'flash_decode': max(
            heads.rows * spent * heads.kv_heads / 8 / chip.cores,
            moved / chip.bandwidth * chip.clock,
        )
    }


def reading(
    generation: str, heads: Heads, length: int, piece: int, itemsize: int
) -> dict[str, float]:
    """Cycles of the two calls of `ops.flash_prefill` by their names, as `decoding`.

    Args:
      piece: positions that are read at once.
    """
    chip, blocks = CHIPS[generation], flash_prefill.blocks_of(generation)
    calls = heads.rows * heads.kv_heads / chip.cores
    own, past = (blocks.fit(heads.group, piece, slots) for slots in (piece, length))
    walk = functools.partial(_walk, generation, 'flash_forward', 'online')
    visited = flash_mask.visited(Mask(causal=True), own, piece, piece)
    whole, over = divmod(length, past.keys)
    brought = past.tiles * past.loads * past.visits * DECODE[generation]['bring']
    moved = 2 * heads.rows * heads.kv_heads * past.tiles * length * heads.h * itemsize
    return {
        'flash_prefill_own': calls * walk(own, *(int(x[0]) for x in visited)),
        'flash_prefill_past': max(
            calls * (brought + walk(past, past.tiles * whole, past.tiles * bool(over))),
            moved / chip.bandwidth * chip.clock,
        ),
    }


def cycles(
    generation: str, heads: int, kv_heads: int, rows: int, context: int, road: str
) -> Mapping[str, float | Callable[[Instruction], float]]:
    """Part of a kernel's name -> cycles of one call on causal rows, as `plan.estimate` takes it.

    Args:
      generation: a key of BUNDLES. heads, kv_heads, rows: on one device.
      context: positions of a row. road: one of ROADS.
    """
    group = heads // kv_heads
    calls = kv_heads * rows / CHIPS[generation].cores
    found = {}
    for kernel, blocks, name in (
        ('flash_forward', FORWARD, road), ('flash_backward', BACKWARD, 'backward'),
    ):  # fmt: skip
        fit = blocks[generation].fit(group, context, context)
        visited = flash_mask.visited(Mask(causal=True), fit, context, context)
        found[kernel] = calls * _walk(generation, kernel, name, fit, *(int(x[0]) for x in visited))
    return found | {
        'norm_rope_forward': functools.partial(_by_head, generation, 'norm_rope_forward', 2),
        'norm_rope_backward': functools.partial(_by_head, generation, 'norm_rope_backward', 3),
    }  # fmt: skip


def _walk(generation: str, kernel: str, name: str, fit: Fit, whole: int, cut: int) -> float:
    """Bundles of a kernel for one key-value head: all tiles, and so many blocks of all."""
    bundles, size = BUNDLES[generation], fit.keys * fit.columns / 2**20
    visits = size * (cut * bundles[name] + whole * bundles[f'{name}_whole'])
    return visits + bundles[f'{kernel}_tile'] * fit.tiles * fit.columns / 1024


def _by_head(generation: str, name: str, moved: int, call: Instruction) -> float:
    """Cycles of a call of `ops.norm_rope` on bfloat16, from the size of its result; it reads and
    writes `moved` arrays of that size."""
    chip, size = CHIPS[generation], arrays(call.shape)[0][0]
    bundles = BUNDLES[generation][name] * size / (2 * LANES * 1024) / chip.cores
    return max(bundles, moved * size / chip.bandwidth * chip.clock)
