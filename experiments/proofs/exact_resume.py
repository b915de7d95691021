"""20 steps of nano networks in one go, and as 10 + kill -9 + 10: are they the same bits?

    JAX_PLATFORMS=cpu python -m experiments.proofs.exact_resume \
        --out experiments/proofs/exact_resume.json

The language model of the nano recipe's stage 2, and its vocoder against discriminators: sizes and
optimisers are the recipe's, rows are drawn at random, so that every update is different and nothing
has to be trained before. Compared are the losses of all steps and every bit of parameters and
optimiser state at the end.
"""

from collections.abc import Callable
import dataclasses
import hashlib
import os
from pathlib import Path
import signal
import subprocess
import sys
import tempfile

from absl import app, flags, logging
import jax
from ml_collections import ConfigDict
import numpy as np

from experiments.nano.configs import stage2, vocoder
from experiments.nano.stages import CODES, LANGUAGE_MODEL, ROW_LENGTH
from experiments.proofs import record
from mossjax import checkpoint
from mossjax.data import segments
from mossjax.data.pipeline import Batches, Whole
from mossjax.models.flow.mel import HOP
from mossjax.models.lm.config import LMConfig
from mossjax.models.vocoder.discriminators import DiscriminatorConfig
from mossjax.models.vocoder.hift.config import HiftConfig
from mossjax.parallel import rules
from mossjax.parallel.mesh import MeshConfig, make_mesh
from mossjax.train import metrics, state
from mossjax.train.lm import LMTask
from mossjax.train.loop import fit
from mossjax.train.optim import OptimConfig
from mossjax.train.task import Task
from mossjax.train.vocoder import VocoderLoss, VocoderTask

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


def run_config(recipe=stage2) -> ConfigDict:
    config = recipe.get_config()
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


def cuts(frames: int, rows: int):
    """step -> tones of any pitch in noise, with their pitch, a function of the step."""

    def make(step: int) -> dict:
        rng = np.random.default_rng([1, step])
        time = np.arange(HOP * (frames + 2 * segments.MARGIN)) / 24_000
        f0 = rng.uniform(80, 300, (rows, 1))
        audio = 0.2 * np.sin(2 * np.pi * f0 * time) + rng.normal(0, 0.02, (rows, len(time)))
        return {'audio': audio.astype(np.float32),
                'f0': np.broadcast_to(f0, (rows, frames)).astype(np.float32)}  # fmt: skip

    return make


@dataclasses.dataclass(frozen=True)
class Case:
    """A network: what makes its task of batches, its run, and step -> batch."""

    task: Callable[[Batches | None], Task]
    config: ConfigDict
    make: Callable[[int], dict]


def language_model() -> Case:
    config, sizes = run_config(), model()
    return Case(
        lambda batches: LMTask(sizes, batches), config, rows(sizes, config.data.batch_size)
    )


def of_vocoder() -> Case:
    config = run_config(vocoder)
    given = config.loss.to_dict()
    judges = DiscriminatorConfig(**given.pop('discriminators'))
    generator, weights = HiftConfig(**config.model), VocoderLoss(**given)
    return Case(
        lambda batches: VocoderTask(generator, batches, weights, judges), config,
        cuts(config.data.frames, 2),
    )  # fmt: skip


CASES = {'language model': language_model, 'vocoder': of_vocoder}


def train(case: Case, workdir: Path, kill: bool) -> None:
    """Trains to the end, or kills itself once step 13 is logged and checkpoint 10 is complete."""

    def batch(step: int) -> dict:
        if kill and step > STEPS // 2:
            logged = metrics.read(workdir / 'metrics.jsonl')
            saved = (workdir / 'checkpoints' / str(STEPS // 2)).exists()
            if saved and logged and logged[-1]['step'] > STEPS // 2:
                os.kill(os.getpid(), signal.SIGKILL)
        return case.make(step)

    fit(case.task(Whole(batch)), case.config, workdir)


def apart(name: str, workdir: Path, *more: str) -> int:
    command = [sys.executable, '-m', 'experiments.proofs.exact_resume', '--train', str(workdir)]
    return subprocess.run([*command, '--network', name, *more], cwd=record.ROOT).returncode


def digest(workdir: Path, task: Task, config) -> str:
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


def compared(name: str) -> dict:
    """Both runs of one network, and whether they are the same bits."""
    with tempfile.TemporaryDirectory() as scratch:
        whole, parts = Path(scratch) / 'whole', Path(scratch) / 'parts'
        assert apart(name, whole) == 0
        killed = apart(name, parts, '--kill')
        last = metrics.read(parts / 'metrics.jsonl')[-1]['step']
        assert killed == -signal.SIGKILL and STEPS // 2 < last < STEPS, (killed, last)
        assert apart(name, parts) == 0
        losses = [
            [line['loss'] for line in metrics.read(run / 'metrics.jsonl')] for run in (whole, parts)
        ]
        case = CASES[name]()
        states = [digest(run, case.task(None), case.config) for run in (whole, parts)]
    same = losses[0] == losses[1] and states[0] == states[1] and len(losses[0]) == STEPS
    logging.info('%s: losses and states %s', name, 'are the same bits' if same else 'DIFFER')
    return {
        'identical': same, 'killed_after_step': last, 'losses': losses[0],
        'losses_resumed': losses[1], 'state_sha256': states[0], 'state_sha256_resumed': states[1],
    }  # fmt: skip


def main(argv: list[str]) -> None:
    del argv
    given = flags.FLAGS
    if given.train:
        train(CASES[given.network](), Path(given.train), given.kill)
        return
    if not given.out:
        sys.exit('--out FILE.json is missing')
    found = {name: compared(name) for name in CASES}
    command = 'JAX_PLATFORMS=cpu python -m experiments.proofs.run exact_resume'
    record.write(given.out, command, found)
    sys.exit(0 if all(one['identical'] for one in found.values()) else 1)


if __name__ == '__main__':
    flags.DEFINE_string('out', None, 'JSON file to write.')
    flags.DEFINE_string('train', None, 'Train in this workdir (what the proof runs apart).')
    flags.DEFINE_enum('network', 'language model', list(CASES), 'What is trained there.')
    flags.DEFINE_bool('kill', False, 'kill -9 after half of the steps.')
    app.run(main)
