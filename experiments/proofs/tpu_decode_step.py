"""The 9.1 B speaking step, compiled by the TPU compiler for single chips that are not there.

    JAX_PLATFORMS=cpu python -m experiments.proofs.tpu_decode_step \
        --out experiments/proofs/tpu_decode_step.json [--only 'bfloat16@v6e, 8 x 4096']

A call of the engine while its lanes speak (temperature, top-k and top-p as released): int8 weights
on a v5e (15.75 GiB), bfloat16 on a v6e. Found: bytes by the compiler's own account, below the
chip's or the compilation fails; milliseconds, as `mossjax.plan.cycles` adds them up, of a step, the
text branch at rest, beside those that the bytes alone would take, and of a piece of a prompt behind
a full lane; that nothing in the loop sorts a vocabulary or copies a table or a cache. Not found:
what a real chip loses to stalls and its host.
"""

import dataclasses
import importlib.metadata
from pathlib import Path
import sys
import tempfile

from absl import app, flags, logging
import jax

from experiments.proofs import record
from mossjax.convert.codec_tokenizer import tokenizer_network
from mossjax.infer import buckets
from mossjax.models.lm.config import LMConfig
from mossjax.models.tokenizer.config import TokenizerConfig
from mossjax.parallel import options
from mossjax.plan import compile as plan
from mossjax.plan import cycles, hlo, speaking

CONFIG = LMConfig.released()
COPIES = 16 * 2**20  # bytes of a copy that would be one of a table or a cache
FLOW_STREAM = Path(__file__).with_name('flow_stream.json')


@dataclasses.dataclass(frozen=True)
class Case:
    """Weights held as `kind` on one chip; lanes with room for `rows` rows each.

    They speak, or read a prompt in pieces of `piece` rows.
    """

    kind: str
    chip: str
    lanes: int
    rows: int
    piece: int = 0

    @property
    def name(self) -> str:
        reading = f', reading {self.piece}' * bool(self.piece)
        return f'{self.kind}@{self.chip}, {self.lanes} x {self.rows}{reading}'

    @property
    def speech(self) -> speaking.Speech:
        return speaking.Speech(self.kind, self.lanes, self.rows, self.piece)


CASES = (
    Case('int8', 'v5e', 1, 8192),
    Case('int8', 'v5e', 1, 8192, buckets.PIECES[-1]),
    Case('int8', 'v5e', 8, 1024),
    Case('bfloat16', 'v6e', 1, 4096),
    Case('bfloat16', 'v6e', 8, 4096),
    Case('bfloat16', 'v6e', 16, 4096),
)


def lowered(case: Case, mesh=None):
    """A program of the engine, lowered for TPU; on a described mesh, or on none."""
    return speaking.lowered(CONFIG, speaking.ids_of(CONFIG), case.speech, mesh)


def codec_bytes() -> int:
    """Of a codec of the released sizes beside the model, float32: weights, a session, a step.

    The streaming decoder's as `flow_stream` recorded them; the speech tokenizer's weights.
    """
    decoder = [record.read(FLOW_STREAM)[f'{name}@v5e:1x1'] for name in ('flow', 'vocoder')]
    kept = sum(part['weight_bytes'] + part['state_bytes'] for part in decoder)
    ears = jax.tree.leaves(tokenizer_network(TokenizerConfig()).shapes)
    ears = sum(x.size * x.dtype.itemsize for x in ears)
    return kept + ears + max(part['temporary_bytes'] for part in decoder)


def faults(program: cycles.Program) -> list[str]:
    """Operations in the loop that sort a vocabulary, or copy a table or a cache."""
    found = []
    for operation in program.below(program.longest_loop()):
        size = max((size for size, _ in hlo.arrays(operation.shape)), default=0)
        sorts = operation.operation == 'sort' and str(CONFIG.audio_vocab_size) in operation.shape
        sorts |= operation.operation == 'sort' and str(CONFIG.vocab_size) in operation.shape
        if sorts or (operation.operation == 'copy' and size >= COPIES):
            found.append(f'{operation.operation} {operation.shape}')
    return found


def speed(case: Case, program: cycles.Program) -> dict:
    """What the record says of a step in speech, or of a piece that is read."""
    if case.piece:
        seconds = speaking.piece_seconds(program, case.chip, CONFIG, case.speech)
        return {'piece_ms': round(1e3 * seconds, 3)}
    step = speaking.step_seconds(program, case.chip, CONFIG, case.speech)
    least = speaking.roofline(CONFIG, case.speech, case.chip)
    milliseconds = 1e3 * (step['speaking'] + step['catching_up'] / speaking.SPREAD)
    return {
        'step_ms': round(milliseconds, 3),
        'catching_up_ms': round(1e3 * step['catching_up'], 3),
        'roofline_ms': round(1e3 * least, 3),
        'over_roofline': round(milliseconds / (1e3 * least), 3),
        'faults': faults(program),
    }


def prove(case: Case) -> dict:
    program = lowered(case, speaking.mesh_of(CONFIG, plan.devices(f'{case.chip}:1x1')))
    # Of the program on no device in particular, which can be lowered again anywhere.
    digest = plan.program_hash(lowered(case))
    logging.info('%s: program %s, compiling', case.name, digest[:12])
    chosen = {} if case.piece else options.options(case.chip, options.SPEAK)
    with tempfile.TemporaryDirectory() as folder:
        told = {**chosen, 'xla_dump_to': folder}
        memory, seconds = plan.compile_for(program, f'{case.chip}:1x1', told)
        found = cycles.read(folder)
    return {
        'program_sha256': digest,
        'options': chosen,
        **speed(case, found),
        'bytes': dataclasses.asdict(memory),
        'gib': round(memory.total / 2**30, 2),
        'compile_wall_seconds': round(seconds),
        'libtpu': importlib.metadata.version('libtpu'),
        'jax': jax.__version__,
    }


def main(argv: list[str]) -> None:
    del argv
    if not flags.FLAGS.out:
        sys.exit('--out FILE.json is missing')
    cases = record.read(flags.FLAGS.out).get('cases', {})
    command = 'JAX_PLATFORMS=cpu python -m experiments.proofs.run tpu_decode_step'
    for case in CASES:
        if flags.FLAGS.only in ('', case.name):
            found = cases[case.name] = prove(case)
            record.write(flags.FLAGS.out, command, {'cases': cases})
            took = found.get('step_ms') or found['piece_ms']
            logging.info('%s: %.2f GiB, %s ms', case.name, found['gib'], took)


if __name__ == '__main__':
    flags.DEFINE_string('out', None, 'JSON file to write.')
    flags.DEFINE_string('only', '', 'One case by its name.')
    app.run(main)
