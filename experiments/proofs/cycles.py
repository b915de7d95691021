"""How long a program takes on a TPU that is not there, by its compiler's own account.

The compiler's dump after code generation holds for each operation the cycles it expects, memory
included. They are added up, bodies of loops as often as they run. Not seen: stalls, launching, what
runs beside the cores, operations for which the compiler gives no number.
"""

import math
from pathlib import Path
import re
import tempfile

import jax

from mossjax.plan import compile as plan

CLOCK = {'v5e': 1.5e9, 'v6e': 1.75e9}  # Hz
_START = re.compile(r'(ENTRY )?%?([\w.\-]+) .*->.*\{$')
_WHILE = re.compile(r' while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)')
_CALL = re.compile(r' (?:call|conditional)\(')
_CALLED = re.compile(r'(?:to_apply|true_computation|false_computation)=%?([\w.\-]+)')
_TIMES = re.compile(r's32\[\]\S* constant\((\d+)\)')  # what the condition compares with
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


def cycles(text: str) -> int:
    """Of one run of the module in `text`, an HLO dump after code generation.

    A loop whose length the compiler does not know counts once.
    """
    bodies, entry, current = {}, None, None
    for line in text.splitlines():
        if found := _START.match(line):
            current = bodies.setdefault(found[2], [])
            entry = found[2] if found[1] else entry
        elif current is not None:
            # What an operation's attributes break off belongs to it.
            if re.match(r'\s+(ROOT )?%?[\w.\-]+ = ', line) or not current:
                current.append(line)
            else:
                current[-1] += line

    def total(name: str) -> int:
        return sum(map(one, bodies.get(name, [])))

    def one(line: str) -> int:
        if loop := _WHILE.search(line):
            times = _TIMES.search('\n'.join(bodies.get(loop[1], [])))
            return total(loop[2]) * (int(times[1]) if times else 1)
        if _CALL.search(line):
            return sum(map(total, _CALLED.findall(line)))
        found = _CYCLES.search(line)
        return int(found[1]) if found else 0

    return total(entry)


def compiled(function, given, topology: str, donate: tuple[int, ...] = ()) -> dict:
    """Compiles for one chip: estimated seconds and bytes.

    Args:
      given: arguments, arrays or `jax.ShapeDtypeStruct`s. donate: those that are used up.
    """
    where = jax.sharding.SingleDeviceSharding(plan.devices(topology)[0])
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), given)
    traced = jax.jit(function, donate_argnums=donate).trace(*given)
    generation = topology.split(':')[0]
    with tempfile.TemporaryDirectory() as dump:
        options = {**plan.OPTIONS.get(generation, {}), 'xla_dump_to': dump}
        program = traced.lower(lowering_platforms=('tpu',)).compile(compiler_options=options)
        (text,) = Path(dump).glob('*after_codegen.txt')
        estimated = cycles(text.read_text()) / CLOCK[generation]
    memory = program.memory_analysis()
    return {
        'seconds': round(estimated, 5), 'flops': operations(traced.jaxpr.jaxpr),
        'argument_bytes': memory.argument_size_in_bytes,
        'temporary_bytes': memory.temp_size_in_bytes,
    }  # fmt: skip


def operations(jaxpr) -> int:
    """Floating point operations of all matrix products and convolutions, loops included."""
    count = 0
    for equation in jaxpr.eqns:
        name, out = equation.primitive.name, equation.outvars[0].aval
        if name == 'dot_general':
            (contracted, _), _ = equation.params['dimension_numbers']
            left = equation.invars[0].aval.shape
            count += 2 * out.size * math.prod(left[i] for i in contracted)
        elif name == 'conv_general_dilated':
            kernel = equation.params['dimension_numbers'].rhs_spec
            shape = equation.invars[1].aval.shape
            count += 2 * out.size * math.prod(shape[i] for i in kernel[1:])
        times = equation.params.get('length', 1) if name == 'scan' else 1
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')
        ):
            inner = getattr(inner, 'jaxpr', inner)
            if hasattr(inner, 'eqns'):
                count += times * operations(inner)
    return count
