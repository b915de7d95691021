"""The 9.1 B training step, compiled by the TPU compiler for pods that are not there.

    JAX_PLATFORMS=cpu python -m experiments.proofs.tpu_train_step \
        --out experiments/proofs/tpu_train_step.json [--only stage2@v6e:8x8]

The step, model and optimiser are those of `experiments/moss_9b`; rows of 8,192 positions, two on
each of 64 chips. Found: bytes on each chip by the compiler's own account, below its limit or the
compilation fails. Each takes 3 to 15 minutes of one core; what is in the file already for the same
program and versions is not compiled again. Not found: speed, or that the numbers are right.
"""

import dataclasses
import functools
import importlib
import importlib.metadata
import sys

from absl import app, flags, logging
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from experiments.proofs import record
from mossjax.parallel import rules
from mossjax.parallel.mesh import AXES, MeshConfig, make_mesh
from mossjax.plan import compile as plan
from mossjax.train import lm, state, step
from mossjax.train.optim import OptimConfig

TOPOLOGIES = ('v5p:4x4x4', 'v6e:8x8')
STAGES = ('stage1', 'stage2')
CONTEXT, ROWS_PER_CHIP = 8192, 2


def lowered(stage: str, mesh):
    """The lowered step of a config of `experiments.moss_9b` on a mesh of devices or an abstract."""
    config = importlib.import_module(f'experiments.moss_9b.{stage}').get_config()
    task = lm.make_task(config, batches=None)
    made = state.layout(
        task, OptimConfig(**config.optim), config.steps, mesh, rules.preset(config.rules)
    )
    make = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    grid = (ROWS_PER_CHIP * mesh.size, CONTEXT)
    batch = {
        'tokens': make((*grid, 2)), 'labels': make((*grid, 2)),
        'segments': make(grid), 'positions': make(grid),
    }  # fmt: skip
    return step.lower(
        task, made, jnp.dtype(config.compute_dtype), batch, config.accumulate
    )  # fmt: skip


def abstract_mesh(chips: int = 64) -> AbstractMesh:
    """The mesh of the configs for this many chips, of no devices in particular."""
    shape = MeshConfig().shape(chips)
    return AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def prove(stage: str, topology: str) -> dict:
    """Compiles one case."""
    devices = plan.devices(topology)
    program = lowered(stage, make_mesh(MeshConfig(), devices))
    digest = plan.program_hash(program)
    logging.info('%s on %s: program %s, compiling', stage, topology, digest[:12])
    memory, seconds = plan.compile_for(program, topology)
    return {
        'program_sha256': digest,
        'chips': len(devices),
        'bytes_per_chip': dataclasses.asdict(memory),
        'gib_per_chip': round(memory.total / 2**30, 2),
        'compile_wall_seconds': round(seconds),
        'compiler_options': plan.OPTIONS.get(topology.split(':')[0], {}),
        'libtpu': importlib.metadata.version('libtpu'),
        'jax': jax.__version__,
    }


def up_to_date(case: dict, stage: str) -> bool:
    """Is this the record of the program as it is now, by the versions installed now?"""
    return (
        case.get('jax') == jax.__version__
        and case.get('libtpu') == importlib.metadata.version('libtpu')
        and case.get('program_sha256') == plan.program_hash(lowered(stage, abstract_mesh()))
    )


def main(argv: list[str]) -> None:
    del argv
    if not flags.FLAGS.out:
        sys.exit('--out FILE.json is missing')
    cases = record.read(flags.FLAGS.out).get('cases', {})
    for topology in TOPOLOGIES:
        for stage in STAGES:
            name = f'{stage}@{topology}'
            if flags.FLAGS.only not in ('', name) or up_to_date(cases.get(name, {}), stage):
                continue
            cases[name] = prove(stage, topology)
            figures = {
                'context': CONTEXT, 'rows_per_chip': ROWS_PER_CHIP, 'cases': cases,
            }  # fmt: skip
            command = 'JAX_PLATFORMS=cpu python -m experiments.proofs.run tpu_train_step'
            record.write(flags.FLAGS.out, command, figures)
            logging.info('%s: %.2f GiB a chip', name, cases[name]['gib_per_chip'])


if __name__ == '__main__':
    flags.DEFINE_string('out', None, 'JSON file to write.')
    flags.DEFINE_string('only', '', 'One case, such as stage2@v6e:8x8.')
    app.run(main)
