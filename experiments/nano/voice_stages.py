"""The stages that give the nano codec its voice: vocoder, speaker encoder, decoder.

As in `stages`, each takes (workdir, effort), leaves its results in the workdir, the network itself
in `codec`, and goes on where it was stopped.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
import contextlib
import fcntl
from pathlib import Path
import random
import sys

import jax
import numpy as np

from experiments.nano import render, stages
from experiments.nano.doubles import write_doubles
from mossjax.convert import codec_directory, codec_speaker, codec_vocoder
from mossjax.convert.codec_flow import save_flow
from mossjax.convert.codec_speaker import save_campp
from mossjax.convert.codec_vocoder import save_hift
from mossjax.convert.fingerprint import VOICE
from mossjax.data.manifest import Recording, write_manifest
from mossjax.errors import InputError
from mossjax.infer import voice as voices
from mossjax.infer.voice_maker import VoiceMaker, read_recording
from mossjax.nn import weight_norm
from mossjax.train.vocoder import GENERATOR

PROMPT = 2.0  # seconds that the recording of the codec's own voice has at least
# What the vocoder learns from, recordings of each voice: their pitch is measured, four a second.
VOICED = {'question': 80, 'words': 70, 'answer': 400, 'answer_other': 34}
SOME = 'vocoder.jsonl'  # the manifest of these


def vocoder_mel(workdir: Path, effort: float) -> dict:
    """HiFT by mels and pitch alone."""
    if not (workdir / SOME).exists():
        write_manifest(workdir / SOME, some(stages.manifest(workdir, 'train')))
    config, _, state = stages.train(workdir, 'vocoder_mel', effort)
    return stages.facts_of(config, state) | _last(workdir, 'vocoder_mel')


def vocoder(workdir: Path, effort: float) -> dict:
    """The same against its discriminators."""
    config, task, state = stages.train(workdir, 'vocoder', effort)
    generator = weight_norm.fold(jax.tree.map(np.asarray, state.params[GENERATOR]))
    with _alone(workdir):
        save_hift(
            workdir / 'codec', task.config, stages.bfloat16(generator), suffix='.safetensors'
        )
    return stages.facts_of(config, state) | _last(workdir, 'vocoder')


def speaker(workdir: Path, effort: float) -> dict:
    """CAM++ of the nano voices."""
    config, task, state = stages.train(workdir, 'speaker', effort)
    save_campp(
        workdir / 'codec', task.config, stages.bfloat16(task.encoder(state.params, state.extra))
    )
    return stages.facts_of(config, state) | _last(workdir, 'speaker')


def doubles(workdir: Path, effort: float) -> dict:
    """Sound of other voices for the codes of recordings, which must not tell whose the mel is."""
    del effort
    recordings, codes = stages.manifest(workdir, 'train'), stages.open_codes(workdir, 'train')
    return {'doubles': write_doubles(recordings, codes, workdir)}


def decoder(workdir: Path, effort: float) -> dict:
    """The flow decoder of all voices, its encoder first; told of none, the codec has that of
    replies."""
    stages.train(workdir, 'decoder_mu', effort)
    config, task, state = stages.train(workdir, 'decoder', effort)
    codec = workdir / 'codec'
    with _alone(workdir):
        save_flow(codec, task.config, stages.bfloat16(state.params))
    voices.save(codec / VOICE, own_voice(codec, stages.manifest(workdir, 'train')))
    return stages.facts_of(config, state) | _last(workdir, 'decoder')


def some(recordings: Sequence[Recording]) -> list[Recording]:
    """VOICED of each voice, drawn at random."""
    drawn, taken = list(recordings), Counter()
    random.Random(0).shuffle(drawn)

    def wanted(recording: Recording) -> bool:
        of = recording.speaker, recording.extra['kind']
        taken[of] += 1
        return taken[of] <= VOICED[of[1]]

    return list(filter(wanted, drawn))


def own_voice(codec: str | Path, recordings: Sequence[Recording]) -> voices.Voice:
    """The voice of replies, of the first recording that is long enough.

    Raises:
      InputError: none is.
    """
    for recording in recordings:
        if recording.speaker == render.REPLY_VOICE and recording.extra['seconds'] > PROMPT:
            return VoiceMaker.open(codec).make(*read_recording(recording.audio))
    raise InputError(
        f'no recording of {render.REPLY_VOICE!r} among {len(recordings)} lasts {PROMPT} s, for '
        "the codec's own voice; make them anew: experiments.nano.run --again recordings"
    )


def check_voiced(codec: str) -> None:
    """Ends the process unless a codec has what makes it speak by itself, in any voice."""
    parts = {'vocoder': codec_vocoder.STEM, 'speaker encoder': codec_speaker.STEM}
    if missing := [name for name, stem in parts.items() if not codec_directory.has(codec, stem)]:
        sys.exit(
            f'{codec} has no {missing[0]}; give --codec one that has (make nano trains one: '
            'runs/nano/codec)'
        )


@contextlib.contextmanager
def _alone(workdir: Path) -> Iterator[None]:
    """One stage at a time: the settings of vocoder and decoder are in one file."""
    with open(workdir / 'codec.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _last(workdir: Path, name: str) -> dict:
    return {'last': stages.last_metrics(workdir / name)}
