"""The 9.1 B training step, compiled by the TPU compiler for pods that are not there.

    JAX_PLATFORMS=cpu python -m experiments.proofs.tpu_train_step \
        --out experiments/proofs/tpu_train_step.json [--only stage2@v6e:16x16] [--dump DIR]

The step, model and optimiser are those of `experiments/moss_9b`, rows and what is kept for the
backward pass those named in `CASES`. Found: bytes on each chip by the compiler's own account,
below its limit or the compilation fails. Each takes 3 to 15 minutes of one core; what is in the
file already for the same program and versions is not compiled again. Not found: that the numbers
are right. With --dump the compiler's files stay, from which step times are estimated.
"""

import dataclasses
import importlib
import importlib.metadata
import math
import sys
from typing import NamedTuple

from absl import app, flags, logging
import jax
from jax.sharding import AbstractMesh

from experiments.proofs import record
from mossjax.parallel import chips, options
from mossjax.parallel.mesh import AXES, MeshConfig, make_mesh
from mossjax.plan import compile as plan
from mossjax.plan import programs


class Case(NamedTuple):
    """One program: a config of `experiments.moss_9b`, a slice, rows on each chip, positions of a
    row, the remat policy (`nn.remat`) and chunk of the loss with which that is fastest and fits."""

    stage: str
    topology: str
    rows: int
    context: int
    remat: str
    chunk: int = 2048

    @property
    def generation(self) -> str:
        return self.topology.split(':')[0]

    @property
    def chips(self) -> int:
        return math.prod(int(n) for n in self.topology.split(':')[1].split('x'))


CASES = {
    'stage1@v5p:4x4x4': Case('stage1', 'v5p:4x4x4', 2, 8192, 'projections'),
    'stage2@v5p:4x4x4': Case('stage2', 'v5p:4x4x4', 2, 8192, 'projections'),
    'stage2@v5e:16x16': Case('stage2', 'v5e:16x16', 1, 8192, 'attention'),
    'stage2@v6e:16x16': Case('stage2', 'v6e:16x16', 2, 8192, 'heads', chunk=1024),
}


def lowered(case: Case, mesh):
    """The lowered step of a case on a mesh of devices or an abstract one."""
    config = importlib.import_module(f'experiments.moss_9b.{case.stage}').get_config()
    config.model.remat, config.loss.chunk = case.remat, case.chunk
    return programs.training(config, mesh, case.rows, case.context, config.accumulate).lowered


def abstract_mesh(generation: str, chips_in_all: int) -> AbstractMesh:
    """The mesh of the configs for this many chips, of no devices in particular."""
    return chips.abstract_mesh(generation, MeshConfig().shape(chips_in_all), AXES)


def prove(case: Case, dump: str | None) -> dict:
    """Compiles one case."""
    mesh = make_mesh(MeshConfig(), plan.devices(case.topology))
    program = lowered(case, mesh)
    digest = plan.program_hash(program)
    logging.info('%s: program %s, compiling', case, digest[:12])
    memory, seconds = plan.compile_for(program, case.topology, dump=dump)
    return {
        **case._asdict(),
        'program_sha256': digest,
        'chips': case.chips,
        'bytes_per_chip': dataclasses.asdict(memory),
        'gib_per_chip': round(memory.peak / 2**30, 2),
        'compile_wall_seconds': round(seconds),
        'compiler_options': options.options(case.generation, options.TRAIN),
        'libtpu': importlib.metadata.version('libtpu'),
        'jax': jax.__version__,
    }


def up_to_date(found: dict, case: Case) -> bool:
    """Is this the record of the program as it is now, by the versions installed now?"""
    mesh = abstract_mesh(case.generation, case.chips)
    return (
        found.get('jax') == jax.__version__
        and found.get('libtpu') == importlib.metadata.version('libtpu')
        and found.get('program_sha256') == plan.program_hash(lowered(case, mesh))
    )


def main(argv: list[str]) -> None:
    del argv
    if not flags.FLAGS.out:
        sys.exit('--out FILE.json is missing')
    cases = record.read(flags.FLAGS.out).get('cases', {})
    cases = {name: found for name, found in cases.items() if name in CASES}
    for name, case in CASES.items():
        if flags.FLAGS.only not in ('', name):
            continue
        if not flags.FLAGS.dump and up_to_date(cases.get(name, {}), case):
            continue
        cases[name] = prove(case, flags.FLAGS.dump)
        command = 'JAX_PLATFORMS=cpu python -m experiments.proofs.run tpu_train_step'
        record.write(flags.FLAGS.out, command, {'cases': cases})
        logging.info('%s: %.2f GiB a chip', name, cases[name]['gib_per_chip'])


if __name__ == '__main__':
    flags.DEFINE_string('out', None, 'JSON file to write.')
    flags.DEFINE_string('only', '', 'One case, such as stage2@v6e:16x16.')
    flags.DEFINE_string('dump', None, "Directory for the compiler's files.")
    app.run(main)
