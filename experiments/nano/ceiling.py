"""What the judge can hear at best, before anything is trained.

    python -m experiments.nano.ceiling --recordings runs/nano/recordings

plays it the recorded answers, the same after Griffin-Lim from their true 80-band 24 kHz mel, noisy
versions of that mel, silence, and held-out questions. A word that is misheard from its recording
or from the clean mel must leave the world before training starts: no model can score on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags
import numpy as np

from experiments.nano import render
from experiments.nano import world as worlds
from experiments.nano.script import start
from mossjax.eval import spoken_qa
from mossjax.eval.judge import Judge
from mossjax.infer import audio
from mossjax.ops.resample import resample

MEL_RATE = 24_000
NOISES = (0.0, 0.3)  # standard deviation added to the natural-log mel


def resynthesise(wavs: Sequence[np.ndarray], noise: float) -> list[np.ndarray]:
    """16 kHz -> log-mel at 24 kHz (+ noise) -> Griffin-Lim -> 24 kHz."""
    import jax

    from mossjax.models.flow.mel import HOP, log_mel
    from mossjax.models.vocoder.griffin_lim import griffin_lim

    longest = max(len(wav) for wav in wavs) * MEL_RATE // render.RATE
    frames = -(-longest // HOP)

    @jax.jit
    def back(wave, key):
        mel = log_mel(wave[None])
        mel = mel + noise * jax.random.normal(key, mel.shape)
        return griffin_lim(mel, np.array([mel.shape[1]]), key)[0]

    made = []
    for i, wav in enumerate(wavs):
        wave = resample(wav, render.RATE, MEL_RATE)
        padded = np.pad(wave, (0, frames * HOP - len(wave)))
        made.append(np.asarray(back(padded, jax.random.key(i)))[: len(wave)])
    return made


def measure(recordings: Path, questions: int) -> list[spoken_qa.Row]:
    """The rows of the table; misheard words stand in the meaning column."""
    world = worlds.World.load(recordings / 'world.json')
    judge = Judge(world.answers, world.questions)
    train, heldout = recordings / 'train', recordings / 'heldout'
    lines = [r for r in render.read_lines(train / 'manifest.jsonl') if r['kind'] == 'answer']
    sources = {r['text'].split()[-1]: audio.load(train / r['audio'], render.RATE) for r in lines}
    asked = list(render.read_lines(heldout / 'manifest.jsonl'))
    picked = np.random.default_rng(0).permutation(len(asked))[:questions]
    spoken = [audio.load(heldout / asked[i]['audio'], render.RATE) for i in picked]
    rows = spoken_qa.controls(judge, sources, render.RATE, spoken, render.RATE)
    words = list(sources)
    for noise in NOISES:
        heard = judge.answers_of(resynthesise(list(sources.values()), noise), MEL_RATE)
        wrong = [f'{w} as {h}' for w, h in zip(words, heard, strict=True) if h != w]
        name = f'Griffin-Lim, mel noise {noise}'
        hits = spoken_qa.accuracy(heard, words)
        meaning = f'misheard: {", ".join(wrong) or "none"}'
        rows.append(spoken_qa.row(name, hits, len(words), meaning))
    return rows


def main() -> None:
    print(spoken_qa.table(measure(Path(flags.FLAGS.recordings), flags.FLAGS.questions)))


if __name__ == '__main__':
    flags.DEFINE_string('recordings', None, 'output of experiments.nano.render', required=True)
    flags.DEFINE_integer('questions', 100, 'held-out questions played to the judge')
    start(main)
