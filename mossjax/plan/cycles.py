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

from mossjax.errors import InputError
from mossjax.parallel.chips import CHIPS
from mossjax.plan import hlo
from mossjax.plan.hlo import Instruction, Module, array_bytes, arrays

# These move nothing by themselves.
_FREE = frozenset(
    ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'iota', 'after-all',
     'opt-barrier', 'copy-done', 'slice-done', 'async-done', 'async-update')
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
        self, name: str, chip: str, way: Callable[[Sequence[str]], int],
        kernels: Mapping[str, float] | None = None,
    ) -> float:  # fmt: skip
        """Of one execution of a computation.

        Args:
          chip: a key of `chips.CHIPS`.
          way: names of the computations of a conditional, in order -> index of the one taken.
          kernels: part of a Pallas kernel's name -> cycles of one call.

        Raises:
          InputError: there is a Pallas kernel that `kernels` does not name.
        """
        clock, bandwidth = CHIPS[chip].clock, CHIPS[chip].bandwidth
        total = 0.0
        for operation in self.computations[name]:
            if operation.operation == 'while':
                one = self.seconds(operation.called('body'), chip, way, kernels)
                total += self.module.trips(operation) * one
            elif operation.operation == 'call':
                total += self.seconds(operation.called('to_apply'), chip, way, kernels)
            elif operation.operation == 'conditional':
                ways = operation.all_called('branch_computations')
                total += self.seconds(ways[way(ways)], chip, way, kernels)
            elif KERNEL in operation.text:
                total += _of_kernel(operation, kernels or {}) / clock
            elif operation.operation not in _FREE:
                noted = (operation.cycles or 0) / clock
                total += max(noted, self.bytes(name, operation) / bandwidth)
        return total

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
