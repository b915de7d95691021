"""How long a program would take on a TPU that is not there, by its compiler's own account.

The compiler notes on most operations of its final program how many cycles it expects, which is
what it schedules by. Here they are summed along the program: loops times their turns, of a
conditional the way that is asked for. An operation never counts less than its bytes in HBM over
the bandwidth. What has no note (sorts, scalars) counts nothing; stalls and the host do not either.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import itertools
import math
from pathlib import Path
import re

from mossjax.errors import InputError
from mossjax.parallel.chips import CHIPS

_BYTES = {
    'pred': 1, 's4': 0.5, 'u4': 0.5, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2,
    's32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8,
}  # fmt: skip
# These move nothing by themselves.
_FREE = frozenset(
    ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'iota', 'after-all',
     'opt-barrier', 'copy-done', 'slice-done', 'async-done', 'async-update')
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Operation:
    """One line of a final program.

    Attributes:
      name, kind: such as 'fusion.12' and 'fusion'.
      shape: of the result, with its layout.
      operands: names.
      cycles: the compiler's note, or None.
      text: the whole line.
    """

    name: str
    kind: str
    shape: str
    operands: tuple[str, ...]
    cycles: int | None
    text: str

    def called(self, what: str) -> list[str]:
        """Names of computations in an attribute such as body or branch_computations."""
        found = re.search(rf'\b{what}=(\{{[^}}]*\}}|[^,\s]+)', self.text)
        return re.findall(r'[\w.\-]+', found.group(1)) if found else []


class Program:
    """A final program as the compiler writes it.

    Attributes:
      computations: {name: its operations}.
      entry: name of the first.
    """

    def __init__(self, text: str):
        self.computations: dict[str, list[Operation]] = {}
        self.entry = ''
        current = None
        for line in _joined(text):
            head = re.match(r'(ENTRY )?%?([\w.\-]+) .*\{$', line)
            if head and '->' in line:
                current = self.computations.setdefault(head.group(2), [])
                self.entry = head.group(2) if head.group(1) else self.entry
            elif current is not None and (operation := _operation(line)):
                current.append(operation)

    def turns(self, loop: Operation) -> int:
        """Of a while loop that counts to a constant; else 1."""
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.text)
        if known:
            return int(known.group(1))
        condition = self.computations.get((loop.called('condition') or [''])[0], [])
        ends = [re.search(r's32\[\]\S* constant\((\d+)\)', o.text) for o in condition]
        return next((int(end.group(1)) for end in ends if end), 1)

    def longest_loop(self) -> str:
        """Body of the loop with the most operations in and below it that no other loop holds."""
        loops = [o.called('body')[0] for o in self.computations[self.entry] if o.kind == 'while']
        if not loops:
            raise InputError('the program has no loop')
        return max(loops, key=lambda name: sum(1 for _ in self.below(name)))

    def below(self, name: str) -> Iterator[Operation]:
        """Every operation of a computation and of what it calls, fusions left whole."""
        for operation in self.computations[name]:
            yield operation
            for attribute in ('body', 'to_apply', 'branch_computations'):
                for inner in operation.called(attribute):
                    if operation.kind in ('while', 'call', 'conditional'):
                        yield from self.below(inner)

    def seconds(self, name: str, chip: str, way: Callable[[Sequence[str]], int]) -> float:
        """Of one execution of a computation.

        Args:
          chip: a key of `chips.CHIPS`.
          way: names of the computations of a conditional, in order -> index of the one taken.
        """
        clock, bandwidth = CHIPS[chip].clock, CHIPS[chip].bandwidth
        total = 0.0
        for operation in self.computations[name]:
            if operation.kind == 'while':
                one = self.seconds(operation.called('body')[0], chip, way)
                total += self.turns(operation) * one
            elif operation.kind == 'call':
                total += self.seconds(operation.called('to_apply')[0], chip, way)
            elif operation.kind == 'conditional':
                ways = operation.called('branch_computations')
                total += self.seconds(ways[way(ways)], chip, way)
            elif operation.kind not in _FREE:
                noted = (operation.cycles or 0) / clock
                total += max(noted, self.bytes(name, operation) / bandwidth)
        return total

    def bytes(self, name: str, operation: Operation) -> float:
        """What an operation of a computation reads from HBM and writes there, at least."""
        if operation.kind.endswith('-start'):  # of what it takes from HBM to VMEM, or back
            return min(filter(None, map(size, arrays(operation.shape)[:2])), default=0)
        shapes = {o.name: o.shape for o in self.computations[name]}
        inner = self._inside(operation)
        read = 0.0
        for i, operand in enumerate(operation.operands):
            if not _in_vmem(shapes.get(operand, '')):
                whole = sum(map(size, arrays(shapes.get(operand, ''))))
                part = self._looked_at(inner, i) if inner else _part(operation, i, whole)
                read += min(whole, part)
        if _in_vmem(operation.shape):
            return read
        updates = [o for o in inner or [operation] if o.kind == 'dynamic-update-slice']
        if updates:
            by_name = {o.name: o.shape for o in inner} or shapes
            return read + sum(size(by_name.get(o.operands[1], '')) for o in updates)
        return read + sum(map(size, arrays(operation.shape)))

    def _inside(self, operation: Operation) -> list[Operation]:
        """The operations of a fusion, none of any other."""
        return self.computations.get((operation.called('calls') or [''])[0], [])

    def _looked_at(self, inner: list[Operation], i: int) -> float:
        """What a fusion looks at of operand i: slices of it where it uses nothing else."""
        names = {o.name for o in inner if o.kind == 'parameter' and f'parameter({i})' in o.text}
        total = 0.0
        for operation in inner:
            for k in (k for k, operand in enumerate(operation.operands) if operand in names):
                same = operation.kind in ('bitcast', 'get-tuple-element')
                if same or 'output_to_operand_aliasing' in operation.text:
                    names.add(operation.name)  # another view of it
                elif operation.kind == 'fusion':
                    total += self._looked_at(self._inside(operation), k)
                else:
                    total += _part(operation, k, math.inf)
        return total


def read(folder: str | Path) -> Program:
    """The last program that the compiler wrote to a folder (its option xla_dump_to)."""
    return Program(sorted(Path(folder).glob('*after_codegen.txt'))[-1].read_text())


# -------------------------------------------------------------------------------- lines and shapes


def _joined(text: str) -> Iterator[str]:
    """Lines, attributes that go on over several put back together."""
    held = ''
    for line in text.splitlines():
        starts = re.match(r'\s+(ROOT )?%?[\w.\-]+ = ', line) or not line.startswith((' ', '}}'))
        if held and starts:
            yield held
            held = ''
        held = held + line if held else line
    if held:
        yield held


def _operation(line: str) -> Operation | None:
    found = re.match(r'\s+(?:ROOT )?%?([\w.\-]+) = (.*)$', line)
    if not found:
        return None
    name, rest = found.groups()
    if rest.startswith('('):  # a tuple of shapes
        depths = itertools.accumulate({'(': 1, ')': -1}.get(letter, 0) for letter in rest)
        end = next((i for i, depth in enumerate(depths) if not depth), len(rest)) + 1
        shape, tail = rest[:end], rest[end:].strip()
    else:
        shape, _, tail = rest.partition(' ')
    kind = re.match(r'[\w\-]+', tail)
    cycles = re.search(r'estimated_cycles":"(\d+)"', line)
    operands = re.findall(r'%([\w.\-]+)', tail.partition('(')[2].partition('), ')[0])
    return Operation(
        name, kind.group() if kind else '', shape, tuple(operands),
        int(cycles.group(1)) if cycles else None, line,
    )  # fmt: skip


def arrays(shape: str) -> list[str]:
    """The arrays of a shape, which may be a tuple."""
    return re.findall(r'\b[a-z]+[0-9]*\[[0-9,]*\]', shape)


def size(array: str) -> float:
    """Bytes of an array such as 's8[4096,12288]'."""
    found = re.match(r'([a-z]+[0-9]*)\[([0-9,]*)\]', array)
    if not found:
        return 0
    sizes = [int(n) for n in found.group(2).split(',') if n]
    return _BYTES.get(found.group(1), 0) * math.prod(sizes)


def _in_vmem(shape: str) -> bool:
    return 'S(1)' in shape


def _part(operation: Operation, i: int, whole: float) -> float:
    """What an operation that stands alone looks at of operand i."""
    if operation.kind in ('dynamic-slice', 'gather', 'slice'):
        return sum(map(size, arrays(operation.shape))) if i == 0 else whole
    if operation.kind == 'dynamic-update-slice':
        return 0 if i == 0 else whole
    return whole
