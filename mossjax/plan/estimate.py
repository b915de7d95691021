"""An estimate of a program's time on a TPU that is not there, from the compiler's dump.

Sums the compiler's own cycles of every instruction in the order in which they run, loops times
their trips. Pallas kernels are charged what the caller says (the compiler does not know their
grids). A collective is charged its bytes over the links, one that runs beside others only for what
those do not cover. Not modelled: stalls, latency, congestion, the host. Trust ratios of two
estimates by one compiler more than either; absolute times to some 15 %.
"""

from collections import defaultdict
from collections.abc import Mapping
import dataclasses
import re

from mossjax.parallel.chips import Chip
from mossjax.plan.hlo import Instruction, Module, array_bytes, arrays

_COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
# Of a conditional all ways count.
_CALLED = ('to_apply', 'true_computation', 'false_computation', 'branch_computations')
# Take no time of their own.
_FREE = frozenset((
    'parameter', 'constant', 'get-tuple-element', 'tuple', 'bitcast', 'partition-id', 'after-all',
    'opt-barrier', 'copy-start', 'copy-done', 'iota', 'broadcast', 'replica-id', 'domain',
))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Part:
    """One instruction's share: seconds over all its runs."""

    kind: str
    where: str
    shape: str
    origin: str
    runs: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Collective:
    """Over all its runs: bytes of a result, seconds on the wire."""

    kind: str
    bytes: float
    runs: int
    seconds: float
    beside: bool


@dataclasses.dataclass
class Estimate:
    """Seconds of one run of the program, and of what.

    Attributes:
      exposed: seconds in which only a collective runs.
      unknown: operation -> runs, of those with no estimate; they count as nothing.
    """

    seconds: float = 0.0
    exposed: float = 0.0
    parts: list[Part] = dataclasses.field(default_factory=list)
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    unknown: dict[str, int] = dataclasses.field(default_factory=lambda: defaultdict(int))


def estimate(module: Module, chip: Chip, kernels: Mapping[str, float]) -> Estimate:
    """
    Args:
      kernels: part of a Pallas kernel's name -> cycles of one call.
    """
    walk = _Walk(module, chip, kernels)
    walk.made.seconds = walk.computation(module.entry, 1)
    return walk.made


class _Walk:
    def __init__(self, module: Module, chip: Chip, kernels: Mapping[str, float]):
        self.module, self.chip, self.kernels = module, chip, kernels
        self.made = Estimate()

    def computation(self, name: str, runs: int) -> float:
        """Seconds of one run, adding up the parts of all."""
        return _Line(self, self.module.computations.get(name, []), runs).run()

    def note(self, kind: str, instruction: Instruction, runs: int, seconds: float) -> None:
        origin = re.search(r'op_name="([^"]*)"', instruction.text)
        self.made.parts.append(Part(
            kind, self.module.where(instruction),
            re.sub(r'\{[^}]*\}', '', instruction.shape)[:160], origin[1] if origin else '',
            runs, seconds * runs,
        ))  # fmt: skip

    def wire(self, instruction: Instruction, operand_bytes: float) -> float:
        """Seconds of a collective on a torus, all its links at work."""
        kind, shape = instruction.operation, instruction.shape
        if kind.endswith('-start') and shape.startswith('('):
            shape = max((text for _, text in arrays(shape)), key=array_bytes, default='')
        size = array_bytes(shape)
        group = _group(instruction.text, self.module.partitions)
        share = (group - 1) / group
        links = self.chip.axes * 2
        if kind.startswith('all-gather'):
            moved = size * share
        elif kind.startswith('reduce-scatter'):
            moved = operand_bytes * share
        elif kind.startswith('all-reduce'):
            moved = 2 * size * share
        elif kind.startswith('all-to-all'):
            moved = size * share / 4
        else:
            moved, links = size, 1
        return moved / (self.chip.link * links)


class _Line:
    """One computation from its first instruction to its last: a clock for what computes, and one
    for the links, which carry one collective after the other."""

    def __init__(self, walk: _Walk, instructions: list[Instruction], runs: int):
        self.walk, self.instructions, self.runs = walk, instructions, runs
        self.sizes = {i.name: i.bytes for i in instructions}
        self.now = self.links = 0.0
        self.pending: dict[str, float] = {}  # what has been started -> when it is done

    def run(self) -> float:
        for instruction in self.instructions:
            self.step(instruction)
        return self.now

    def step(self, i: Instruction) -> None:
        operation = i.operation
        if operation == 'while':
            trips = self.walk.module.trips(i)
            self.now += trips * self.walk.computation(i.called('body'), self.runs * trips)
        elif operation in ('call', 'conditional'):
            for attribute in _CALLED:
                for name in i.all_called(attribute):
                    self.now += self.walk.computation(name, self.runs)
        elif operation == 'custom-call' and 'tpu_custom_call' in i.text:
            self.kernel(i)
        elif operation.startswith(_COLLECTIVES):
            self.collective(i)
        elif operation.startswith('async-'):
            self.beside(i)
        elif operation not in _FREE:
            self.computing(i)

    def kernel(self, i: Instruction) -> None:
        cycles = next((c for part, c in self.walk.kernels.items() if part in i.name), None)
        if cycles is None:
            self.walk.made.unknown[f'kernel {i.name}'] += self.runs
            return
        self.spend('kernel', i, cycles / self.walk.chip.clock)

    def spend(self, kind: str, i: Instruction, seconds: float) -> None:
        self.walk.note(kind, i, self.runs, seconds)
        self.now += seconds

    def computing(self, i: Instruction) -> None:
        if i.operation == 'fusion':
            self.chain(i)
        if i.cycles is None:
            self.walk.made.unknown[i.operation] += self.runs
            return
        matmul = 'kind=kOutput' in i.text or 'convolution' in i.name
        kind = 'matmul' if matmul else 'fusion' if i.operation == 'fusion' else i.operation
        self.spend(kind, i, i.cycles / self.walk.chip.clock)

    def collective(self, i: Instruction) -> None:
        if i.operation.endswith('-done'):
            self.wait(self.pending.pop(i.operands[0], 0.0) if i.operands else 0.0)
            return
        start = i.operation.endswith('-start')
        done = self.send(i, self.sizes, beside=start)
        if start:
            self.pending[i.name] = done
        else:
            self.walk.note('collective', i, self.runs, max(done - self.now, 0.0))
            self.wait(done)

    def send(self, i: Instruction, sizes: Mapping[str, float], beside: bool) -> float:
        """Puts a collective on the links; when it is done."""
        seconds = self.walk.wire(i, sum(sizes.get(name, 0.0) for name in i.operands))
        kind = re.sub('-start$', '', i.operation)
        self.walk.made.collectives.append(
            Collective(kind, i.bytes, self.runs, seconds * self.runs, beside)
        )
        self.links = max(self.now, self.links) + seconds
        return self.links

    def wait(self, until: float) -> None:
        if until > self.now:
            self.walk.made.exposed += (until - self.now) * self.runs
            self.now = until

    def inner(self, i: Instruction) -> tuple[list[Instruction], dict[str, float]]:
        """Collectives of the computation that an instruction calls, and sizes there."""
        called = self.walk.module.computations.get(i.called('calls') or '', [])
        found = [j for j in called if j.operation.startswith(_COLLECTIVES)]
        return found, {j.name: j.bytes for j in called}

    def beside(self, i: Instruction) -> None:
        if i.operation == 'async-start':
            found, sizes = self.inner(i)
            for j in found:
                self.pending[i.name] = self.send(j, sizes, beside=True)
        elif i.operands and i.operands[0] in self.pending:
            done = self.pending.pop(i.operands[0])
            if i.operation == 'async-update':
                self.pending[i.name] = done
            else:
                self.wait(done)

    def chain(self, i: Instruction) -> None:
        """On v5e one collective is spread over a chain of fusions that compute as well."""
        found, sizes = self.inner(i)
        for j in found:
            channel = re.search(r'channel_id=(\d+)', j.text)
            key = f'chain {channel[1] if channel else j.name}'
            if key not in self.pending:
                self.pending[key] = self.send(j, sizes, beside=True)
            elif 'done' in i.name:
                self.wait(self.pending[key])


def _group(text: str, everyone: int) -> int:
    """Devices that a collective joins."""
    if found := re.search(r'replica_groups=\[(\d+),(\d+)\]', text):
        return int(found[2])
    if found := re.search(r'replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}', text):
        sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", found[1])}
        group = 1
        for name in re.findall(r"'(\w+)'", found[2]):
            group *= sizes.get(name, 1)
        return group
    return everyone
