"""What a program costs on one TPU that is not there: estimated time, operations, bytes."""

import math
import tempfile

import jax

from mossjax.plan import compile as plan
from mossjax.plan import cycles


def compiled(function, given, topology: str, donate: tuple[int, ...] = ()) -> dict:
    """Compiles for one chip: estimated seconds (`plan.cycles`), operations, temporary bytes.

    Args:
      given: arguments, arrays or `jax.ShapeDtypeStruct`s. donate: those that are used up.
    """
    where = jax.sharding.SingleDeviceSharding(plan.devices(topology)[0])
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), given)
    traced = jax.jit(function, donate_argnums=donate).trace(*given)
    with tempfile.TemporaryDirectory() as dump:
        memory, _ = plan.compile_for(
            traced.lower(lowering_platforms=('tpu',)), topology, dump=dump
        )  # fmt: skip
        program = cycles.read(dump)
    return {
        'seconds': round(program.seconds(program.entry, topology.split(':')[0], _no_way), 5),
        'flops': operations(traced.jaxpr.jaxpr),
        'temporary_bytes': memory.temporaries,
    }


def _no_way(ways) -> int:
    raise ValueError(f'what this program costs depends on values: it takes one of {ways}')


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
        inside = list(equation.params.values())
        if equation.params.get('branches_platforms') is not None:
            inside = equation.params['branches'][-1:]  # they do the same, each on its platform
        for inner in jax.tree.leaves(inside, is_leaf=lambda x: hasattr(x, 'eqns')):
            inner = getattr(inner, 'jaxpr', inner)
            if hasattr(inner, 'eqns'):
                count += times * operations(inner)
    return count
