"""What a Pallas kernel costs, read from the compiler's own listing of its instructions.

The TPU compiler can be asked to write the final program of every kernel as VLIW bundles. A core
issues one bundle a cycle, so the bundles of a stretch of code without jumps are its cycles, stalls
and waits for memory left out. No TPU is needed.
"""

from collections.abc import Iterator
import dataclasses
import pathlib
import re

# Read by libtpu when it is loaded: a process of its own for each dump.
ENVIRONMENT = {
    'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}  # fmt: skip
DUMP = (
    '--xla_jf_dump_to={} --xla_jf_dump_llo_text=true '
    '--xla_jf_dump_llo_pass_label_regex=final.* --xla_tpu_scoped_vmem_limit_kib=65536'
)
_BUNDLE = re.compile(r'^\s*(0x[0-9a-f]+|0)\s+(LH|LB|LE|PB|PF|CT)?\s*:\s*(>*)')
_BRANCH = re.compile(r'sbr\.rel')


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Bundles from `start` on.

    Attributes:
      kind: 'loop', the body of an inner loop, or 'guarded', what a condition jumps over.
      busy: share of the bundles in which a unit has work, by the compiler's name of the unit.
    """

    kind: str
    start: int
    bundles: int
    busy: dict[str, float]

    @property
    def matrix(self) -> float:
        """Share of the bundles in which the matrix unit has work."""
        return self.busy.get('MXU', self.busy.get('MATMUL', 0.0))


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel's program: all its bundles, and the stretches in it."""

    bundles: int
    stretches: tuple[Stretch, ...]

    def loops(self) -> list[Stretch]:
        """Inner loops that multiply matrices, in the order of the program."""
        return [x for x in self.stretches if x.kind == 'loop' and x.matrix > 0.2]

    def innermost(self) -> Stretch:
        """The smallest stretch under a condition that multiplies matrices all along."""
        found = [x for x in self.stretches if x.kind == 'guarded' and x.matrix > 0.2]
        return min(found, key=lambda x: x.bundles)

    def step(self) -> int:
        """Bundles of a step of the grid, all that it might jump over included."""
        return self.bundles - min((x.start for x in self.stretches), default=0)


def read(dump: str | pathlib.Path, name: str) -> Kernel:
    """The kernel of this name in a folder that `DUMP` has filled.

    Raises:
      FileNotFoundError: the dump has no such kernel, or more than one.
      ValueError: its tables are written otherwise than is known here.
    """
    listing = _only(dump, f'*{name}*final_bundles.txt', without='schedule-analysis')
    busy = _only(dump, f'*{name}*per-bundle-utilization.txt')
    names, slots, rows = _utilisation(busy.read_text())
    lines = listing.read_text(errors='replace').splitlines()
    stretches = tuple(
        Stretch(
            kind, start, end - start,
            {
                unit: sum(row[at] for row in rows[start:end]) / slots[at] / (end - start)
                for at, unit in enumerate(names)
            },
        )
        for kind, start, end in sorted(_stretches(lines), key=lambda x: x[1])
        if end - start >= 64
    )
    return Kernel(len(rows), stretches)


def _only(dump, pattern: str, without: str = '\0') -> pathlib.Path:
    found = [path for path in pathlib.Path(dump).glob(pattern) if without not in path.name]
    if len(found) != 1:
        raise FileNotFoundError(f'{dump}: {len(found)} files like {pattern}, one was expected')
    return found[0]


def _stretches(lines: list[str]) -> Iterator[tuple[str, int, int]]:
    """(kind, start, end) of inner loops, by the depth marks, and of what forward jumps skip."""
    loop: tuple[int, int] | None = None  # start and depth
    jumps: list[int] = []
    at = 0
    for line in lines:
        if not (mark := _BUNDLE.match(line)):
            continue
        at, tag, depth = int(mark[1], 16), mark[2], len(mark[3])
        if loop and (depth < loop[1] or tag == 'LB'):
            yield 'loop', loop[0], at
            loop = None
        if tag == 'LB' and depth >= 2:
            loop = at, depth
        if tag == 'PF' and jumps:
            yield 'guarded', jumps.pop(), at
        if _BRANCH.search(line):
            jumps.append(at)
    if loop:
        yield 'loop', loop[0], at + 1


def _utilisation(text: str) -> tuple[list[str], list[int], list[list[int]]]:
    """(units, slots of each in a bundle, slots used bundle by bundle)."""
    lines = text.splitlines()
    heads = [n for n, line in enumerate(lines) if line.startswith(('MXU,', 'MATMUL'))]
    if not heads:
        raise ValueError('no table of units used; another libtpu writes another listing')
    head = heads[0]
    names = [name.strip() for name in lines[head].split(',')]
    slots = [int(n) for n in lines[head + 1].split()]
    rows = [
        [int(n) for n in line.split()]
        for line in lines[head + 2 :]
        if re.fullmatch(r'[\d ]+', line.strip() or '-')
    ]
    return names, slots, rows
