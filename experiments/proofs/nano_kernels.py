"""The nano model under our attention kernels: what they change in training and in its answers.

    python -m experiments.proofs.nano_kernels --out experiments/proofs/nano_kernels.json

Two parts. The shipped checkpoint trains for 20 steps with the kernels (interpreted: what a TPU
would compute, on a CPU) and with the reference attention: the same start, the same rows. Then it
answers the demo's questions with the kernels' rounding: in bfloat16 they multiply probabilities
that were rounded to bfloat16, so every attention of its replies rounds them likewise.
"""

from pathlib import Path
import sys
import tempfile

from absl import app, flags, logging
import jax.numpy as jnp

from experiments.proofs import exact_resume, record
from mossjax.data.pipeline import Whole
from mossjax.eval import demo, demo_table
from mossjax.files import read_json
from mossjax.infer.assets import Assets, shipped
from mossjax.models.lm.config import LMConfig
from mossjax.nn.flash import interpreted
from mossjax.ops import cached_attention
from mossjax.ops.attention import attention
from mossjax.train import metrics, starts
from mossjax.train.lm import LMTask
from mossjax.train.loop import fit

WITHIN = 1e-4  # of the losses


def losses(attend, workdir: Path) -> list[float]:
    """Of each step of a run of the shipped checkpoint on random rows, in float32."""
    source = shipped() / 'lm'
    config = exact_resume.run_config()
    sizes = LMConfig.from_hf(read_json(source / 'config.json') | {'dtype': 'float32'})
    task = LMTask(sizes, Whole(exact_resume.rows(sizes, config.data.batch_size)), attend=attend)
    start = starts.language_model(str(source), sizes, task.network, 0)
    fit(task, config, workdir, init_from=start)
    return [line['loss'] for line in metrics.read(workdir / 'metrics.jsonl')]


def round_probabilities() -> None:
    """From here on every attention over a cache weighs values by bfloat16 probabilities."""
    exact = cached_attention._weighted

    def rounded(weights, values, dtype):
        return exact(weights.astype(jnp.bfloat16).astype(jnp.float32), values, dtype)

    cached_attention._weighted = rounded


def main(argv: list[str]) -> None:
    del argv
    if not flags.FLAGS.out:
        sys.exit('--out FILE.json is missing')
    with tempfile.TemporaryDirectory() as scratch:
        ours = losses(interpreted, Path(scratch) / 'kernels')
        reference = losses(attention, Path(scratch) / 'reference')
    apart = max(abs(a - b) for a, b in zip(ours, reference, strict=True))
    logging.info('%d losses, at most %.1e apart', len(ours), apart)
    round_probabilities()
    assets = Assets.open(shipped())
    tour = demo.tour(assets)
    lines = demo_table.lines(tour.answers, tour.controls)
    print(demo_table.table(lines))
    met = demo_table.all_met(lines)
    record.write(flags.FLAGS.out, 'python -m experiments.proofs.run nano_kernels', {
        'losses_within': WITHIN, 'losses_apart': apart, 'losses_of_kernels': ours,
        'losses_of_reference': reference, 'all_gates_met': met, 'weights_sha256': assets.hashes(),
        'table': demo_table.figures(lines),
    })  # fmt: skip
    sys.exit(0 if met and apart <= WITHIN else 1)


if __name__ == '__main__':
    flags.DEFINE_string('out', None, 'JSON file to write.')
    app.run(main)
