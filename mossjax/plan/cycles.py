"""How long a program would take on a TPU that is not there, by its compiler's own account.

The compiler notes on most operations of its final program how many cycles it expects, which is
what it schedules by. Here they are summed along the program: loops times their turns, of a
conditional the way that is asked for. An operation never counts less than its bytes in HBM over
the bandwidth. What has no note (sorts, scalars) counts nothing; stalls and the host do not either.
Pallas kernels are charged what the caller says (`plan.kernels`): the compiler does not know them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import math
from pathlib import Path
import re

from mossjax.errors import InputError
from mossjax.parallel.chips import CHIPS, Chip
from mossjax.plan import hlo
from mossjax.plan.estimate import COLLECTIVES, Part, wire
from mossjax.plan.hlo import Instruction, Module, array_bytes, arrays

# These move nothing by themselves.
_FREE = frozenset(
    ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'iota', 'after-all',
     'opt-barrier', 'async-update')
)  # fmt: skip
KERNEL = 'custom_call_target="tpu_custom_call"'


class Program:
    """A final program as the compiler writes it (`plan.hlo`), and the time it takes."""

    def __init__(self, module: Module):
        self.module, self.computations, self.entry = module, module.computations, module.entry

    def longest_loop(self) -> str:
        """Body of the loop with the most operations in and below it that no other loop holds."""
        loops = [
            o.called('body') for o in self.computations[self.entry] if o.operation == 'while'
        ]
        if not loops:
            raise InputError('the program has no loop')
        return max(loops, key=lambda name: sum(1 for _ in self.below(name)))

    def below(self, name: str) -> Iterator[Instruction]:
        """Every operation of a computation and of what it calls, fusions left whole."""
        for operation in self.computations[name]:
            yield operation
            if operation.operation in ('while', 'call', 'conditional'):
                for attribute in ('body', 'to_apply', 'branch_computations'):
                    for inner in operation.all_called(attribute):
                        yield from self.below(inner)

    def seconds(
        self, name: str, generation: str, way: Callable[[Sequence[str]], int],
        kernels: Mapping[str, float] | None = None,
    ) -> float:  # fmt: skip
        """Of one execution of a computation, see `parts`."""
        return sum(part.seconds for part in self.parts(name, generation, way, kernels or {}))

    def parts(
        self, name: str, generation: str, way: Callable[[Sequence[str]], int],
        kernels: Mapping[str, float], runs: int = 1,
    ) -> Iterator[Part]:  # fmt: skip
        """What one execution of a computation is made of, in its order.

        Their kind is what binds: 'HBM' where its bytes alone take more than half of the time,
        'links', or 'compute'. A collective is waited for; its latency, which is most of a small
        one, is not in it.

        Args:
          generation: a key of `chips.CHIPS`.
          way: names of the computations of a conditional, in order -> index of the one taken.
          kernels: part of a Pallas kernel's name -> cycles of one call.

        Raises:
          InputError: there is a Pallas kernel that `kernels` does not name.
        """
        for operation in self.computations[name]:
            if operation.operation == 'while':
                trips = runs * self.module.trips(operation)
                yield from self.parts(operation.called('body'), generation, way, kernels, trips)
            elif operation.operation == 'call':
                yield from self.parts(operation.called('to_apply'), generation, way, kernels, runs)
            elif operation.operation == 'conditional':
                ways = operation.all_called('branch_computations')
                yield from self.parts(ways[way(ways)], generation, way, kernels, runs)
            elif operation.operation not in _FREE and not operation.operation.endswith('-done'):
                yield self._part(name, operation, CHIPS[generation], kernels, runs)

    def _part(
        self, name: str, operation: Instruction, chip: Chip, kernels: Mapping[str, float], runs: int
    ) -> Part:
        noted = (operation.cycles or 0) / chip.clock
        if KERNEL in operation.text:  # what it reads of a cache is no more than is said of it
            noted = streamed = _of_kernel(operation, kernels) / chip.clock
        else:
            streamed = self.bytes(name, operation) / chip.bandwidth
        took = {'HBM' if 2 * streamed > noted else 'compute': max(noted, streamed)}
        if operation.operation.startswith(COLLECTIVES):
            sizes = {o.name: o.bytes for o in self.computations[name]}
            given = sum(sizes.get(operand, 0.0) for operand in operation.operands)
            took['links'] = wire(operation, given, chip, self.module.partitions)
        kind = max(took, key=took.get)
        origin = re.search(r'op_name="([^"]*)"', operation.text)
        return Part(
            kind, self.module.where(operation), operation.shape, origin[1] if origin else '', runs,
            runs * took[kind],
        )  # fmt: skip

    def bytes(self, name: str, operation: Instruction) -> float:
        """What an operation of a computation reads from HBM and writes there, at least."""
        if operation.operation.endswith('-start'):  # of what it takes from HBM to VMEM, or back
            return min(filter(None, (size for size, _ in arrays(operation.shape)[:2])), default=0)
        shapes = {o.name: o.shape for o in self.computations[name]}
        inner = self._inside(operation)
        read = 0.0
        for i, operand in enumerate(operation.operands):
            if not _in_vmem(shapes.get(operand, '')):
                whole = array_bytes(shapes.get(operand, ''))
                part = self._looked_at(inner, i) if inner else _part(operation, i, whole)
                read += min(whole, part)
        if _in_vmem(operation.shape):
            return read
        updates = [o for o in inner or [operation] if o.operation == 'dynamic-update-slice']
        if updates:
            by_name = {o.name: o.shape for o in inner} or shapes
            return read + sum(array_bytes(by_name.get(o.operands[1], '')) for o in updates)
        return read + operation.bytes

    def _inside(self, operation: Instruction) -> list[Instruction]:
        """The operations of a fusion, none of any other."""
        return self.computations.get(operation.called('calls') or '', [])

    def _looked_at(self, inner: list[Instruction], i: int) -> float:
        """What a fusion looks at of operand i: slices of it where it uses nothing else."""
        names = {
            o.name for o in inner if o.operation == 'parameter' and f'parameter({i})' in o.text
        }
        total = 0.0
        for operation in inner:
            for k in (k for k, operand in enumerate(operation.operands) if operand in names):
                same = operation.operation in ('bitcast', 'get-tuple-element')
                if same or 'output_to_operand_aliasing' in operation.text:
                    names.add(operation.name)  # another view of it
                elif operation.operation == 'fusion':
                    total += self._looked_at(self._inside(operation), k)
                else:
                    total += _part(operation, k, math.inf)
        return total


def read(folder: str | Path) -> Program:
    """The last program that the compiler wrote to a folder (its option xla_dump_to).

    Raises:
      InputError: it wrote none.
    """
    return Program(hlo.read(folder))


def _of_kernel(call: Instruction, kernels: Mapping[str, float]) -> float:
    for part, cycles in kernels.items():
        if part in call.name:
            return cycles
    raise InputError(f'nothing is known of what the kernel {call.name} costs')


def _in_vmem(shape: str) -> bool:
    return 'S(1)' in shape


def _part(operation: Instruction, i: int, whole: float) -> float:
    """What an operation that stands alone looks at of operand i."""
    if operation.operation in ('dynamic-slice', 'gather', 'slice'):
        return operation.bytes if i == 0 else whole
    if operation.operation == 'dynamic-update-slice':
        return 0 if i == 0 else whole
    return whole
