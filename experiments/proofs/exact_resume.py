"""20 steps of the nano language model in one go, and as 10 + kill -9 + 10: are they the same bits?

    JAX_PLATFORMS=cpu python -m experiments.proofs.exact_resume \
        --out experiments/proofs/exact_resume.json

The sizes, optimiser and batch of the nano recipe's stage 2, on rows drawn at random: every update
is different and nothing has to be trained before. Compared are the losses of all steps and every
bit of parameters and optimiser state at the end.
"""

import hashlib
import os
from pathlib import Path
import signal
import subprocess
import sys
import tempfile

from absl import app, flags, logging
import jax
import numpy as np

from experiments.nano.configs import stage2
from experiments.nano.stages import CODES, LANGUAGE_MODEL, ROW_LENGTH
from experiments.proofs import record
from mossjax import checkpoint
from mossjax.data.pipeline import Whole
from mossjax.models.lm.config import LMConfig
from mossjax.parallel import rules
from mossjax.parallel.mesh import MeshConfig, make_mesh
from mossjax.train import metrics, state
from mossjax.train.lm import LMTask
from mossjax.train.loop import fit
from mossjax.train.optim import OptimConfig

STEPS = 20
VOCABULARY = 512


def model() -> LMConfig:
    """The nano model with special ids at the end of a small vocabulary."""
    ids = {
        'vocab_size': VOCABULARY, 'audio_vocab_size': CODES + 64, 'eosp_token_id': CODES,
        'audio_pad_token_id': 0, 'modality_pad_token_id': VOCABULARY - 1,
        'sosp_token_id': VOCABULARY - 2, 'eos_token_id': VOCABULARY - 3, 'dtype': 'float32',
    }  # fmt: skip
    return LMConfig.from_hf(LMConfig.released().to_hf() | LANGUAGE_MODEL | ids)


def run_config():
    config = stage2.get_config()
    config.steps, config.log_every, config.save_every = STEPS, 1, STEPS // 2
    config.optim.warmup_steps = 5
    return config


def rows(config: LMConfig, batch: int, length: int = ROW_LENGTH):
    """step -> rows in which speech and text alternate, a function of the step."""

    def make(step: int) -> dict:
        rng = np.random.default_rng([0, step])
        shape = (batch, length)
        speech = np.cumsum(rng.random(shape) < 0.1, axis=1) % 2 == 1
        text = rng.integers(0, VOCABULARY - 3, shape)
        text = np.where(speech, config.modality_pad_token_id, text)
        tokens = np.stack([text, rng.integers(0, CODES, shape)], axis=-1).astype(np.int32)
        labels = np.roll(tokens, -1, axis=1)
        labels[..., 1][np.roll(text, -1, axis=1) != config.modality_pad_token_id] = -100
        labels[:, -1] = -100
        positions = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
        return {'tokens': tokens, 'labels': labels, 'positions': np.array(positions),
                'segments': np.ones(shape, np.int32)}  # fmt: skip

    return make


def train(workdir: Path, kill: bool) -> None:
    """Trains to the end, or kills itself once step 13 is logged and checkpoint 10 is complete."""
    config, sizes = run_config(), model()
    make = rows(sizes, config.data.batch_size)

    def batch(step: int) -> dict:
        if kill and step > STEPS // 2:
            logged = metrics.read(workdir / 'metrics.jsonl')
            saved = (workdir / 'checkpoints' / str(STEPS // 2)).exists()
            if saved and logged and logged[-1]['step'] > STEPS // 2:
                os.kill(os.getpid(), signal.SIGKILL)
        return make(step)

    fit(LMTask(sizes, Whole(batch)), config, workdir)


def apart(workdir: Path, *more: str) -> int:
    command = [sys.executable, '-m', 'experiments.proofs.exact_resume', '--train', str(workdir)]
    return subprocess.run([*command, *more], cwd=record.ROOT).returncode


def digest(workdir: Path, task: LMTask, config) -> str:
    """sha256 over names, shapes and bits of everything in the last checkpoint of a run."""
    found = hashlib.sha256()
    layout = state.layout(
        task, OptimConfig(**config.optim), config.steps,
        make_mesh(MeshConfig(), jax.devices()[:1]), rules.preset(config.rules),
    )  # fmt: skip
    items, meta = checkpoint.restore(workdir / 'checkpoints', layout.abstract.items())
    for path, leaf in jax.tree_util.tree_leaves_with_path(items):
        leaf = np.asarray(leaf)
        found.update(f'{jax.tree_util.keystr(path)}{leaf.shape}{leaf.dtype}'.encode())
        found.update(leaf.tobytes())
    return f'{meta["step"]}:{found.hexdigest()}'


def main(argv: list[str]) -> None:
    del argv
    if flags.FLAGS.train:
        train(Path(flags.FLAGS.train), flags.FLAGS.kill)
        return
    if not flags.FLAGS.out:
        sys.exit('--out FILE.json is missing')
    with tempfile.TemporaryDirectory() as scratch:
        whole, parts = Path(scratch) / 'whole', Path(scratch) / 'parts'
        assert apart(whole) == 0
        killed = apart(parts, '--kill')
        last = metrics.read(parts / 'metrics.jsonl')[-1]['step']
        assert killed == -signal.SIGKILL and STEPS // 2 < last < STEPS, (killed, last)
        assert apart(parts) == 0
        losses = [
            [line['loss'] for line in metrics.read(run / 'metrics.jsonl')] for run in (whole, parts)
        ]
        states = [digest(run, LMTask(model(), None), run_config()) for run in (whole, parts)]
    same = losses[0] == losses[1] and states[0] == states[1] and len(losses[0]) == STEPS
    logging.info('losses and states %s', 'are the same bits' if same else 'DIFFER')
    command = 'JAX_PLATFORMS=cpu python -m experiments.proofs.run exact_resume'
    record.write(flags.FLAGS.out, command, {
        'identical': same, 'killed_after_step': last, 'losses': losses[0],
        'losses_resumed': losses[1], 'state_sha256': states[0], 'state_sha256_resumed': states[1],
    })  # fmt: skip
    sys.exit(0 if same else 1)


if __name__ == '__main__':
    flags.DEFINE_string('out', None, 'JSON file to write.')
    flags.DEFINE_string('train', None, 'Train in this workdir (what the proof runs apart).')
    flags.DEFINE_bool('kill', False, 'kill -9 after half of the steps.')
    app.run(main)
