"""The 9.1 B training step, compiled by the TPU compiler for pods that are not there.

    JAX_PLATFORMS=cpu python -m experiments.proofs.tpu_train_step \
        --out experiments/proofs/tpu_train_step.json [--only stage2:v6e-256] [--dump DIR]

Model and optimiser are those of `experiments/moss_9b`. Two kinds of cases: the configs as they are
shipped, each for its slice (`stage2:v6e-256`), and, to be compared with others' figures, steps of
8,192 positions (`stage2@v6e:16x16`), rows and what is kept for the backward pass named in `CASES`.
Found: bytes on each chip by the compiler's own account, below its limit or the compilation fails.
Each takes 3 to 15 minutes of one core; what is in the file already for the same program and
versions is not compiled again. Not found: that the numbers are right. With --dump the compiler's
files stay, from which step times are estimated (`experiments.benchmarks.step`).
"""

import dataclasses
import importlib.metadata
import math
import resource
import sys
from typing import NamedTuple

from absl import app, flags, logging
import jax
from jax.sharding import AbstractMesh

from experiments.moss_9b import lora, sft, stage1, stage2
from experiments.proofs import record
from mossjax.parallel import chips, options, slices
from mossjax.parallel.mesh import AXES, MeshConfig, make_mesh
from mossjax.plan import compile as plan
from mossjax.plan import programs


class Case(NamedTuple):
    """One program: a config of `experiments.moss_9b`, a slice, rows on each part of the mesh that
    holds rows and at a time, positions of a row, the remat policy (`nn.remat`), the chunk of the
    loss, parts that a batch is taken in and chips that share a row."""

    stage: str
    topology: str
    rows: int
    context: int
    remat: str
    chunk: int = 2048
    parts: int = 1
    tensor: int = 1
    slices: int = 1
    slice: str = ''  # of a config as it is shipped

    @property
    def generation(self) -> str:
        return self.topology.split(':')[0]

    @property
    def chips(self) -> int:
        return math.prod(int(n) for n in self.topology.split(':')[1].split('x')) * self.slices

    @property
    def mesh(self) -> MeshConfig:
        return MeshConfig(data=self.slices, tensor=self.tensor, slices=self.slices)


# Steps of the 8,192-position cases' schedules, constants of their programs.
STEPS = {'stage1': 80_000, 'stage2': 130_000}
STAGES = {'stage1': stage1, 'stage2': stage2, 'sft': sft, 'lora': lora}


def shipped(stage: str, name: str) -> Case:
    """The case of a config on its slice."""
    config, (slice_, count) = STAGES[stage].get_config(name), slices.several(name, stage)
    return Case(
        stage, slice_.topology, config.data.batch_size // config.accumulate // (
            config.mesh.data * config.mesh.fsdp
        ), config.data.context, config.model.remat, config.loss.chunk, config.accumulate,
        config.mesh.tensor, count, name,
    )  # fmt: skip


CASES = {
    'stage1@v5p:4x4x4': Case('stage1', 'v5p:4x4x4', 2, 8192, 'projections'),
    'stage2@v5p:4x4x4': Case('stage2', 'v5p:4x4x4', 2, 8192, 'projections'),
    'stage2@v5e:16x16': Case('stage2', 'v5e:16x16', 1, 8192, 'attention'),
    'stage2@v6e:16x16': Case('stage2', 'v6e:16x16', 2, 8192, 'heads', chunk=1024),
    **{
        f'{stage}:{name}': shipped(stage, name)
        for stage, module in STAGES.items() for name in module.ROWS
    },
}


def lowered(case: Case, mesh):
    """The lowered step of a case on a mesh of devices or an abstract one."""
    if case.slice:
        config = STAGES[case.stage].get_config(case.slice)
    else:
        config = STAGES[case.stage].get_config()
        config.steps = STEPS[case.stage]
    config.model.remat, config.loss.chunk = case.remat, case.chunk
    return programs.training(config, mesh, case.rows, case.context, case.parts).lowered


def abstract_mesh(case: Case) -> AbstractMesh:
    """The mesh of a case, of no devices in particular."""
    return chips.abstract_mesh(case.generation, case.mesh.shape(case.chips), AXES)


def prove(case: Case, dump: str | None) -> dict:
    """Compiles one case."""
    mesh = make_mesh(case.mesh, plan.devices(case.topology, case.slices))
    program = lowered(case, mesh)
    digest = plan.program_hash(program)
    logging.info('%s: program %s, compiling', case, digest[:12])
    before = resource.getrusage(resource.RUSAGE_SELF)
    memory, seconds = plan.compile_for(program, case.topology, dump=dump)
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        **case._asdict(),
        'program_sha256': digest,
        'chips': case.chips,
        'bytes_per_chip': dataclasses.asdict(memory),
        'gib_per_chip': round(memory.peak / 2**30, 2),
        'compile_wall_seconds': round(seconds),
        'compile_cpu_minutes': round(spent / 60, 1),
        'process_peak_gib': round(after.ru_maxrss / 2**20, 1),  # of the cases before it, too
        'compiler_options': options.options(case.generation, options.TRAIN),
        'libtpu': importlib.metadata.version('libtpu'),
        'jax': jax.__version__,
    }


def up_to_date(found: dict, case: Case) -> bool:
    """Is this the record of the program as it is now, by the versions installed now?"""
    return (
        found.get('jax') == jax.__version__
        and found.get('libtpu') == importlib.metadata.version('libtpu')
        and found.get('program_sha256') == plan.program_hash(lowered(case, abstract_mesh(case)))
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
    flags.DEFINE_string('only', '', 'One case, such as stage2:v6e-256.')
    flags.DEFINE_string('dump', None, "Directory for the compiler's files.")
    app.run(main)
