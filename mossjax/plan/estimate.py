"""An estimate of a program's time on a TPU that is not there, from the compiler's dump.

Sums the compiler's own cycles of every instruction in the order in which they run, loops times
their trips. Pallas kernels are charged what the caller says (the compiler does not know their
grids). A collective is charged its bytes over the links, one that runs beside others only for what
those do not cover. Not modelled: stalls, latency, congestion, the host. Trust ratios of two
estimates by one compiler more than either; absolute times to some 15 %.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
import dataclasses
import re
from typing import NamedTuple

from mossjax.parallel.chips import Chip
from mossjax.plan.hlo import Instruction, Module, array_bytes, arrays

COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
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


@dataclasses.dataclass
class Collective:
    """Over all its runs: bytes of a result, seconds on the wire, and those in which it is waited
    for (behind another on the links as well)."""

    kind: str
    bytes: float
    runs: int
    seconds: float
    beside: bool
    exposed: float = 0.0


# What `plan.kernels` knows of a kernel: cycles of a call, or a function from the call to them.
Cost = float | Callable[[Instruction], float]


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


def estimate(module: Module, chip: Chip, kernels: Mapping[str, Cost]) -> Estimate:
    """
    Args:
      kernels: part of a Pallas kernel's name -> cycles of one call.
    """
    walk = _Walk(module, chip, kernels)
    walk.made.seconds = walk.computation(module.entry, 1)
    return walk.made


class _Sent(NamedTuple):
    """What is on the links, and when it is done."""

    collective: Collective
    done: float


class _Walk:
    def __init__(self, module: Module, chip: Chip, kernels: Mapping[str, Cost]):
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


def wire(instruction: Instruction, operand_bytes: float, chip: Chip, everyone: int) -> float:
    """Seconds of a collective on a torus, all its links at work.

    Args:
      everyone: devices of the program.
    """
    kind, shape = instruction.operation, instruction.shape
    if kind.endswith('-start') and shape.startswith('('):
        shape = max((text for _, text in arrays(shape)), key=array_bytes, default='')
    size = array_bytes(shape)
    group = _group(instruction.text, everyone)
    share = (group - 1) / group
    links = chip.axes * 2
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
    return moved / (chip.link * links)


class _Line:
    """One computation from its first instruction to its last: a clock for what computes, and one
    for the links, which carry one collective after the other."""

    def __init__(self, walk: _Walk, instructions: list[Instruction], runs: int):
        self.walk, self.instructions, self.runs = walk, instructions, runs
        self.sizes = {i.name: i.bytes for i in instructions}
        self.now = self.links = 0.0
        self.pending: dict[str, _Sent] = {}  # what has been started

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
        elif operation.startswith(COLLECTIVES):
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
        cycles = cycles(i) if callable(cycles) else cycles
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
            if i.operands and i.operands[0] in self.pending:
                self.wait(self.pending.pop(i.operands[0]))
            return
        start = i.operation.endswith('-start')
        sent = self.send(i, self.sizes, beside=start)
        if start:
            self.pending[i.name] = sent
        else:
            self.walk.note('collective', i, self.runs, max(sent.done - self.now, 0.0))
            self.wait(sent)

    def send(self, i: Instruction, sizes: Mapping[str, float], beside: bool) -> _Sent:
        """Puts a collective on the links."""
        given = sum(sizes.get(name, 0.0) for name in i.operands)
        seconds = wire(i, given, self.walk.chip, self.walk.module.partitions)
        kind = re.sub('-start$', '', i.operation)
        made = Collective(kind, i.bytes, self.runs, seconds * self.runs, beside)
        self.walk.made.collectives.append(made)
        self.links = max(self.now, self.links) + seconds
        return _Sent(made, self.links)

    def wait(self, sent: _Sent) -> None:
        if sent.done > self.now:
            exposed = (sent.done - self.now) * self.runs
            self.walk.made.exposed += exposed
            sent.collective.exposed += exposed
            self.now = sent.done

    def inner(self, i: Instruction) -> tuple[list[Instruction], dict[str, float]]:
        """Collectives of the computation that an instruction calls, and sizes there."""
        called = self.walk.module.computations.get(i.called('calls') or '', [])
        found = [j for j in called if j.operation.startswith(COLLECTIVES)]
        return found, {j.name: j.bytes for j in called}

    def beside(self, i: Instruction) -> None:
        if i.operation == 'async-start':
            found, sizes = self.inner(i)
            for j in found:
                self.pending[i.name] = self.send(j, sizes, beside=True)
        elif i.operands and i.operands[0] in self.pending:
            sent = self.pending.pop(i.operands[0])
            if i.operation == 'async-update':
                self.pending[i.name] = sent
            else:
                self.wait(sent)

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
