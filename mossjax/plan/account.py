"""What is to be said of a compiled step: memory, time and what it goes to, in plain figures."""

from collections import defaultdict
from collections.abc import Callable, Iterable
import dataclasses

import jax

from mossjax.models.lm.config import LMConfig
from mossjax.parallel.chips import CHIPS, Chip
from mossjax.plan import kernels
from mossjax.plan.compile import Memory
from mossjax.plan.estimate import Collective, Estimate, Part, estimate
from mossjax.plan.hlo import Module

DEAREST = 10


@dataclasses.dataclass(frozen=True)
class Held:
    """Bytes on each device that are the state's own."""

    parameters: int
    optimiser: int

    @classmethod
    def of(cls, layout) -> 'Held':
        """Of a `train.state.Layout`."""
        state = layout.abstract
        return cls(shards(state.params), shards((state.opt_state, state.extra)))


def shards(tree) -> int:
    """Bytes of one device's part of shapes that carry their shardings."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        size = leaf.dtype.itemsize
        for length in leaf.sharding.shard_shape(leaf.shape):
            size *= length
        total += size
    return total


def group_of(part: Part) -> str:
    """The row of the table that an instruction belongs to."""
    again = 'rematted' in part.origin
    if part.kind == 'kernel':
        return 'norm and rope of heads' if 'norm_rope' in part.where else 'attention kernels'
    if part.kind == 'collective':
        return 'collectives of the layers' if part.runs > 1 else 'other collectives'
    if 'losses.py' in part.where:
        return 'loss: matmuls' if part.kind == 'matmul' else 'loss: the rest'
    if part.kind == 'matmul':
        return 'layers: matmuls again' if again else 'layers: matmuls'
    if 'lookup.py' in part.where or 'quant.py' in part.where:
        return 'embedding'
    if part.runs == 1:
        return 'optimiser, casts'
    for name in ('norms', 'rope', 'flash', 'param'):
        if f'/{name}' in part.where.partition(' < ')[0]:
            names = {'flash': 'around the kernels', 'param': 'slices of the scan'}
            return f'layers: {names.get(name, name)}'
    return 'layers: the rest'


def milliseconds(
    parts: Iterable[Part], group: Callable[[Part], str] = group_of, digits: int = 1
) -> dict[str, float]:
    """Rows of the table -> ms of a step, the dearest first."""
    found: dict[str, float] = defaultdict(float)
    for part in parts:
        found[group(part)] += part.seconds * 1e3
    return {name: round(ms, digits) for name, ms in sorted(found.items(), key=lambda x: -x[1])}


def binding(made: Estimate) -> dict[str, float]:
    """Seconds in which the matrix units work, in which memory is what is waited for (all that is
    neither a product nor a collective), and in which only links work."""
    compute = sum(x.seconds for x in made.parts if x.kind in ('matmul', 'kernel'))
    links = made.exposed
    return {
        'compute': compute, 'HBM': max(made.seconds - compute - links, 0.0), 'links': links
    }  # fmt: skip


def collectives(found: Iterable[Collective], digits: int = 1) -> list[dict]:
    """By kind and size: runs a step, bytes of a result, ms on the wire, and of them exposed,
    whether beside others."""
    wires: dict[tuple, list] = defaultdict(lambda: [0, 0.0, 0.0])
    for x in found:
        of_kind = wires[x.kind, x.bytes, x.beside]
        of_kind[0] += x.runs
        of_kind[1] += x.seconds * 1e3
        of_kind[2] += x.exposed * 1e3
    return [
        {'kind': kind, 'mib': round(size / 2**20, digits), 'beside_others': beside, 'runs': runs,
         'wire_ms': round(wire, digits), 'exposed_ms': round(exposed, digits)}
        for (kind, size, beside), (runs, wire, exposed) in sorted(
            wires.items(), key=lambda x: -x[1][1]
        )
    ]  # fmt: skip


def dearest(parts: Iterable[Part]) -> list[dict]:
    """The parts that take longest, those of one place and kind together: ms, runs, file:line."""
    found: dict[tuple, list] = defaultdict(lambda: [0.0, 0])
    for part in parts:
        key = part.kind, part.where or '(no place)', part.shape.partition('{')[0][:60]
        found[key] = [found[key][0] + part.seconds * 1e3, max(found[key][1], part.runs)]
    best = sorted(found.items(), key=lambda x: -x[1][0])[:DEAREST]
    return [
        {'ms': round(ms, 3), 'runs': runs, 'kind': kind, 'where': where, 'shape': shape}
        for (kind, where, shape), (ms, runs) in best
    ]


def by_road(
    module: Module, generation: str, model: LMConfig, rows: int, context: int, tensor: int
) -> dict[str, Estimate]:
    """Road of the attention kernels (`kernels.ROADS`) -> estimate of a training step.

    Args:
      rows: on a device at a time. context: positions of a row. tensor: devices that share a row.
    """
    heads = model.num_attention_heads // tensor, model.num_key_value_heads // tensor
    return {
        road: estimate(
            module, CHIPS[generation], kernels.cycles(generation, *heads, rows, context, road)
        )
        for road in kernels.ROADS
    }


def account(made: Estimate, chip: Chip, memory: Memory, held: Held, work: float) -> dict:
    """Figures of one compiled step, ready for JSON.

    Args:
      work: operations of a step on one device.
    """
    bound = binding(made)
    return {
        'bytes': {
            'peak': memory.peak, 'parameters': held.parameters, 'optimiser': held.optimiser,
            'activations': max(memory.peak - held.parameters - held.optimiser, 0),
            'limit': int(chip.memory),
        },
        'seconds': made.seconds,
        'share_of_peak': work / made.seconds / chip.flops if made.seconds else 0.0,
        'binds': max(bound, key=bound.get),
        'seconds_of': bound,
        'ms': milliseconds(made.parts),
        'collectives': collectives(made.collectives),
        'dearest': dearest(made.parts),
        'no_estimate': dict(made.unknown),
    }  # fmt: skip
