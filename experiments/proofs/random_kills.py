"""20 random kills of a run on four processes: is what comes out the same to the last bit?

    JAX_PLATFORMS=cpu python -m experiments.proofs.random_kills \
        --out experiments/proofs/random_kills.json

A small language model is trained on four processes under `launch.local`, once in peace and then
five times with four kills each: SIGKILL to one process or to all, SIGTERM to one, SIGKILL while a
checkpoint is written; the first two runs are hit before their first checkpoint. A seed says when
and whom. Every run must end with the bits of the quiet one. Runs that are in the file already, for
the same versions and kills, are not made again. Last, a run of four processes goes on from its
last but one checkpoint on one, two and four: the rows they read must be the same to the bit.
"""

import dataclasses
import hashlib
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import tempfile

from absl import app, flags, logging
import jax
import numpy as np

from experiments.proofs import exact_resume, record
from mossjax.checkpoint import versions
from mossjax.data.pipeline import Batches, Whole
from mossjax.models.lm.config import LMConfig
from mossjax.train.config import defaults
from mossjax.train.lm import LMTask
from mossjax.train.loop import fit

HOSTS, RUNS, KILLS = 4, 5, 4
STEPS, SAVE_EVERY = 24, 6
KINDS = ('kill one', 'kill all', 'term one', 'kill in a save')
# Most of a start is compiling: once for all, and no longer than it must.
QUICK = {
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'XLA_FLAGS': '--xla_backend_optimization_level=0',
}  # fmt: skip
SIZES = {
    'hidden_size': 32, 'intermediate_size': 64, 'num_hidden_layers': 3, 'num_shared_layers': 2,
    'num_modality_layers': 1, 'num_attention_heads': 4, 'num_key_value_heads': 2, 'head_dim': 8,
    'max_position_embeddings': 64,
}  # fmt: skip


class Noted:
    """Batches that write down every row they hand out: a line of its step, number and sha256."""

    def __init__(self, batches: Batches, path: Path):
        self._batches, self._lines = batches, open(path, 'a')

    def __getattr__(self, name):
        return getattr(self._batches, name)

    def batch(self, step: int, rows=None):
        found = self._batches.batch(step, rows)
        numbers = range(self.size(step)) if rows is None else rows
        for i, row in enumerate(numbers):
            content = b''.join(np.ascontiguousarray(found[k][i]).tobytes() for k in sorted(found))
            print(step, int(row), hashlib.sha256(content).hexdigest(), file=self._lines, flush=True)
        return found


def task() -> LMTask:
    config = LMConfig.from_hf(exact_resume.model().to_hf() | SIZES)
    return LMTask(config, Whole(exact_resume.rows(config, 8, 32)))


def run_config(workdir: Path):
    config = defaults()
    config.steps, config.save_every, config.log_every = STEPS, SAVE_EVERY, 1
    config.optim.warmup_steps = 5
    config.compilation_cache = str(workdir.parent / 'compiled')  # one for all runs
    return config


def train(workdir: Path) -> None:
    """What every host runs."""
    from mossjax.parallel import distributed

    distributed.start(timeout_s=600)
    trained = task()
    if flags.FLAGS.note_rows:
        path = Path(flags.FLAGS.note_rows) / f'{jax.process_index()}.txt'
        trained = dataclasses.replace(trained, batches=Noted(trained.batches, path))
    fit(trained, run_config(workdir), workdir)


def plan(run: int) -> list[str]:
    """Flags of `launch.local` for the kills of a run, in the order of their steps."""
    rng = np.random.default_rng([20, run])
    steps = np.sort(rng.choice(np.arange(1, STEPS), KILLS, replace=False))
    if run < 2:
        steps[0] = min(steps[0], SAVE_EVERY - 2)
    kinds = np.roll(KINDS, -run)
    return [_kill(kind, int(step), rng) for kind, step in zip(kinds, steps, strict=True)]


def _kill(kind: str, step: int, rng) -> str:
    flag = '--term' if kind.startswith('term') else '--kill'
    host = 'all' if kind == 'kill all' else rng.integers(HOSTS)
    # A save is announced just before it begins, and is still being written some steps later.
    when = f'@saving step {-(-step // SAVE_EVERY) * SAVE_EVERY}' if 'save' in kind else step
    return f'{flag}={when}:{host}'


def launched(workdir: Path, hosts: int, kills: list[str], *words: str):
    """A run under `launch.local`, until it is done."""
    host = [sys.executable, '-m', 'experiments.proofs.random_kills', '--train', str(workdir)]
    done = subprocess.run(
        [sys.executable, '-m', 'launch.local', f'--hosts={hosts}', *kills, '--', *host, *words],
        cwd=record.ROOT, capture_output=True, text=True, env={**os.environ, **QUICK},
    )  # fmt: skip
    if done.returncode:
        tail = '\n'.join([*done.stdout.splitlines()[-40:], *done.stderr.splitlines()[-40:]])
        sys.exit(f'{tail}\nthe run in {workdir} ended with {done.returncode}')
    return done


def run(workdir: Path, kills: list[str]) -> dict:
    """What became of a run: sha256 of the last state, how the hosts of each attempt ended."""
    ended = re.findall(r'hosts ended: (.*)', launched(workdir, HOSTS, kills).stderr)
    state = exact_resume.digest(workdir, task(), run_config(workdir))
    return {'kills': kills, 'attempts': ended, 'state_sha256': state}


def resumed(scratch: Path) -> dict[str, str]:
    """sha256 of the rows that a run reads after its last but one checkpoint, by the processes it
    goes on with."""
    launched(scratch / 'whole', HOSTS, [])
    found = {}
    for hosts in (1, 2, HOSTS):
        again, notes = scratch / f'on_{hosts}', scratch / f'rows_{hosts}'
        notes.mkdir()
        shutil.copytree(scratch / 'whole', again)
        shutil.rmtree(again / 'checkpoints' / str(STEPS))
        launched(again, hosts, [], '--note_rows', str(notes))
        lines = {line for path in notes.iterdir() for line in path.read_text().splitlines()}
        steps = sorted({int(line.split()[0]) for line in lines})
        if steps[0] != STEPS - SAVE_EVERY:
            sys.exit(f'{hosts} processes went on with step {steps[0]}')
        read = [line for line in lines if int(line.split()[0]) < STEPS]  # later ones: prefetched
        if len(read) != SAVE_EVERY * task().size(0):
            sys.exit(f'{hosts} processes read {len(read)} different rows')
        found[str(hosts)] = hashlib.sha256('\n'.join(sorted(read)).encode()).hexdigest()
    return found


def main(argv: list[str]) -> None:
    del argv
    if flags.FLAGS.train:
        train(Path(flags.FLAGS.train))
        return
    if not flags.FLAGS.out:
        sys.exit('--out FILE.json is missing')
    about = {'hosts': HOSTS, 'steps': STEPS, 'save_every': SAVE_EVERY, 'versions': versions()}
    done = record.read(flags.FLAGS.out)
    runs = done.get('runs', {}) if all(done.get(k) == v for k, v in about.items()) else {}

    def write(**more) -> None:
        command = 'JAX_PLATFORMS=cpu python -m experiments.proofs.run random_kills'
        record.write(flags.FLAGS.out, command, {**about, 'runs': runs, **more})

    def note(name: str, facts: dict) -> None:
        runs[name] = facts
        write()

    with tempfile.TemporaryDirectory() as scratch:
        if 'quiet' not in runs:
            note('quiet', run(Path(scratch) / 'quiet', []))
        wanted = runs['quiet']['state_sha256']
        for number in range(RUNS):
            name = f'run {number}'
            if runs.get(name, {}).get('kills') == plan(number):
                continue
            logging.info('%s: %s', name, ' '.join(plan(number)))
            facts = run(Path(scratch) / str(number), plan(number))
            note(name, facts | {'identical': facts['state_sha256'] == wanted})
        read = resumed(Path(scratch))
        write(rows_read_by_processes=read)
    same = [runs[f'run {number}']['identical'] for number in range(RUNS)]
    logging.info('%d of %d runs ended with the bits of the quiet one', sum(same), RUNS)
    alike = len(set(read.values())) == 1
    logging.info('1, 2 and 4 processes read %s', 'the same rows' if alike else 'other rows')
    sys.exit(0 if all(same) and alike else 1)


if __name__ == '__main__':
    flags.DEFINE_string('out', None, 'JSON file to write.')
    flags.DEFINE_string('note_rows', '', 'Directory for the rows a host reads (--train).')
    flags.DEFINE_string('train', None, 'Train in this workdir (what a host of the proof runs).')
    app.run(main)
