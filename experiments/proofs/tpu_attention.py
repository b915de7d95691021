"""The attention kernels compiled by the TPU compiler for chips that are not there.

    JAX_PLATFORMS=cpu python -m experiments.proofs.tpu_attention \
        --out experiments/proofs/tpu_attention.json [--only v6e@14336]

Forward and backward under the entry that the network calls, one row of the 9.1 B model (32 query
heads on 8 of 128, bfloat16, causal with segments) at 8,192 and 14,336 positions, for every
generation of the table of block sizes. Found: the kernels lower, and fit the memories of a core.
Their cost is in `experiments/benchmarks/attention.json`, their numbers are those of
`tests/ops/test_flash.py`.
"""

import hashlib
import importlib.metadata
import re
import sys

from absl import app, flags, logging
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from experiments.proofs import record
from mossjax.nn.flash import kernels
from mossjax.nn.shard import sharding_scope
from mossjax.ops.attention import Mask
from mossjax.ops.flash_blocks import FORWARD
from mossjax.parallel import chips, rules
from mossjax.parallel.mesh import AXES, MeshConfig, make_mesh
from mossjax.plan import compile as plan

TOPOLOGIES = {
    'v4': 'v4:2x2x1', 'v5e': 'v5e:2x2', 'v5p': 'v5p:2x2x1', 'v6e': 'v6e:2x2',
    'tpu7x': 'tpu7x:2x2x1',
}  # fmt: skip
CASES = {f'{name}@{t}': (name, t) for name in FORWARD for t in (8192, 14336)}


def traced(context: int, mesh):
    """Value and gradients of attention on one row, on a mesh of one device, there or not."""
    place = NamedSharding(mesh, PartitionSpec())

    def shape(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=place)

    def run(q, k, v, segments, weights):
        mask = Mask(causal=True, q_segments=segments, kv_segments=segments)
        with sharding_scope(mesh, rules.resolver(rules.preset('fsdp'))):
            out, back = jax.vjp(lambda q, k, v: kernels(q, k, v, mask), q, k, v)
            return out, back(weights)

    queries, keys = shape(1, context, 32, 128), shape(1, context, 8, 128)
    segments = shape(1, context, dtype=jnp.int32)
    return jax.jit(run).trace(queries, keys, keys, segments, queries)


def program_hash(traced) -> str:
    """sha256 of the program with that of its kernels, whose places in files do not count."""
    text = re.sub(r' at [^ \n]*:\d+', '', str(traced.jaxpr))
    whole = text + plan.program_hash(traced.lower(lowering_platforms=('tpu',)))
    return hashlib.sha256(whole.encode()).hexdigest()


def abstract_mesh(generation: str) -> AbstractMesh:
    """One device of a generation, none in particular."""
    return chips.abstract_mesh(generation, (1,) * len(AXES), AXES)


def prove(generation: str, context: int) -> dict:
    topology = TOPOLOGIES[generation]
    program = traced(context, make_mesh(MeshConfig(), plan.devices(topology)[:1]))
    memory, seconds = plan.compile_for(program.lower(lowering_platforms=('tpu',)), topology)
    return {
        'program_sha256': program_hash(traced(context, abstract_mesh(generation))),
        'temporaries': memory.temporaries,
        'compile_wall_seconds': round(seconds),
        'libtpu': importlib.metadata.version('libtpu'),
        'jax': jax.__version__,
    }


def main(argv: list[str]) -> None:
    del argv
    if not flags.FLAGS.out:
        sys.exit('--out FILE.json is missing')
    cases = record.read(flags.FLAGS.out).get('cases', {})
    for name, case in CASES.items():
        if flags.FLAGS.only in ('', name):
            cases[name] = prove(*case)
            command = 'JAX_PLATFORMS=cpu python -m experiments.proofs.run tpu_attention'
            record.write(flags.FLAGS.out, command, {'cases': cases})
            logging.info('%s: compiled in %d s', name, cases[name]['compile_wall_seconds'])


if __name__ == '__main__':
    flags.DEFINE_string('out', None, 'JSON file to write.')
    flags.DEFINE_string('only', '', 'One case, such as v6e@14336.')
    app.run(main)
