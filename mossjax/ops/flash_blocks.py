"""Block sizes of the attention kernels: one table, a row for each TPU generation.

The kernels keep the scores as [keys, columns]; a column is one position of one query head, and the
heads that share a key-value head lie side by side. Sizes were chosen by the instruction counts that
`experiments/benchmarks/attention.py` reads from the compiler.
"""

import dataclasses

from jax.experimental.pallas import tpu as pltpu

LANES = 128
MIB = 2**20
Orders = tuple[tuple[str, ...], tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes of one kernel.

    Attributes:
      columns: of a tile: positions times the heads of a group. Keys are visited once per tile.
      strip: columns between two hand-overs of the pipeline inside a visit.
      keys: of one visit, the grain at which a mask empties or fills a block.
      rows: keys multiplied at a time within a visit.
      resident: keys of a key-value head that VMEM holds at once.
      outer: backward only: dK^T and dV^T are accumulated, [head size, keys], which fills a matrix
        unit 256 wide; one of 128 is as full either way, and loads fewer weights without.
      order: backward only: in which order the code names the five products, of them scores and
        d_weights those of the next strip, and what is made of these two, d_scores. The compiler's
        schedule keeps near to it. cut_order: for blocks that the mask cuts, if it is another.
      vmem: bytes the kernel may ask for.
    """

    columns: int = 2048
    strip: int = 512
    keys: int = 512
    rows: int = 512
    resident: int = 16384
    outer: bool = True
    order: tuple[str, ...] = ('scores', 'd_weights', 'd_scores', 'dv', 'dk', 'dq')
    cut_order: tuple[str, ...] = ()
    vmem: int = 100 * MIB

    @property
    def orders(self) -> Orders:
        """Of whole blocks, and of cut ones."""
        return self.order, self.cut_order or self.order

    def fit(self, group: int, t: int, s: int) -> 'Fit':
        """The sizes for t queries in each of `group` heads that share s keys."""
        positions = LANES
        while positions < t and 2 * positions * group <= self.columns:
            positions *= 2
        if group % 2 and positions == LANES:
            positions *= 2  # the pipeline alternates between two buffers: strips come in pairs
        columns = positions * group
        strip = max(
            (n for n in range(LANES, self.strip + 1, LANES)
             if columns % (2 * n) == 0 and (n % positions == 0 or positions % n == 0)),
            default=LANES,
        )  # fmt: skip
        keys = min(self.keys, _up(s, LANES))
        visits = -(-s // keys)
        loads = -(-visits * keys // max(self.resident, keys))
        return Fit(
            group=group, positions=positions, strip=strip, keys=keys,
            rows=self.rows if keys % self.rows == 0 else keys,
            tiles=-(-t // positions), loads=loads, visits=-(-visits // loads),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Fit:
    """`Blocks` for one shape.

    Attributes:
      positions: query positions of a tile; columns = positions * group.
      tiles: of the queries, positions * tiles >= t.
      loads: times a part of the keys is brought into VMEM, visits * keys of them each.
    """

    group: int
    positions: int
    strip: int
    keys: int
    rows: int
    tiles: int
    loads: int
    visits: int

    @property
    def columns(self) -> int:
        return self.positions * self.group

    @property
    def strips(self) -> int:
        return self.columns // self.strip

    @property
    def resident(self) -> int:
        """Keys in VMEM at once."""
        return self.keys * self.visits

    @property
    def t(self) -> int:
        """Queries with padding."""
        return self.positions * self.tiles

    @property
    def s(self) -> int:
        """Keys with padding."""
        return self.resident * self.loads


FORWARD = {
    'v4': Blocks(columns=1024, resident=2048, vmem=16 * MIB),
    'v5e': Blocks(rows=256),
    'v5p': Blocks(rows=256, vmem=60 * MIB),
    'v6e': Blocks(),
    'tpu7x': Blocks(vmem=60 * MIB),
}
BACKWARD = {
    'v4': Blocks(columns=1024, resident=2048, outer=False, vmem=16 * MIB),
    'v5e': Blocks(
        strip=1024, outer=False, order=('d_weights', 'scores', 'd_scores', 'dk', 'dq', 'dv'),
    ),
    'v5p': Blocks(
        strip=1024, outer=False, order=('d_weights', 'dk', 'scores', 'd_scores', 'dq', 'dv'),
        cut_order=('d_weights', 'dv', 'scores', 'd_scores', 'dq', 'dk'), vmem=60 * MIB,
    ),
    'v6e': Blocks(rows=256),
    'tpu7x': Blocks(rows=256, vmem=60 * MIB),
}
GENERATIONS = {
    pltpu.ChipVersion.TPU_V4: 'v4',
    pltpu.ChipVersion.TPU_V5E: 'v5e',
    pltpu.ChipVersion.TPU_V5P: 'v5p',
    pltpu.ChipVersion.TPU_V6E: 'v6e',
    pltpu.ChipVersion.TPU_7X: 'tpu7x',
}


def generation() -> str:
    """The TPU generation the trace at hand is for: that of the mesh around it, or of the default
    device; 'v5p' where neither is one of the table (its sizes compile for all but v4)."""
    try:
        return GENERATIONS.get(pltpu.get_tpu_info().chip_version, 'v5p')
    except ValueError:  # no TPU
        return 'v5p'


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
