"""A voice of somebody else: the nano codec learns it from a folder of recordings.

    JAX_PLATFORMS=cpu python -m experiments.proofs.own_voice \
        --codec runs/nano/codec --out experiments/proofs/own_voice.json

espeak-ng, which no nano network ever heard, says 40 sentences of the nano world; the command of the
guide, `experiments.own_voice.voice`, teaches the codec its voice. How alike the recordings that
were kept back and the codec's copies of them are, before it and after, and told the voice without
training, is said by the codec's own speaker encoder and, if it is installed, by `resemblyzer`,
which never saw either. The same figure for pairs of those recordings and for pairs of them with
recordings of the nano voices says what is much and what is little.

Fails unless both networks learnt, the rest kept its bytes, and likeness rose by GAIN.
"""

from collections.abc import Callable
import hashlib
import itertools
from pathlib import Path
import subprocess
import sys
import tempfile
import time

from absl import app, flags, logging
import jax
import numpy as np

from experiments.nano import voice_stages, world
from experiments.own_voice import voice
from experiments.proofs import record
from mossjax.convert import codec_directory
from mossjax.errors import InputError
from mossjax.eval import sound
from mossjax.infer import audio
from mossjax.infer.assets import HELDOUT, Assets, codec_hashes, shipped
from mossjax.infer.speech_decoder import SpeechDecoder
from mossjax.infer.speech_tokenizer import SpeechTokenizer
from mossjax.infer.voice_maker import SpeakerEncoder
from mossjax.models.speaker import fbank
from mossjax.models.tokenizer import mel as hearing

SPEAKER = 'en-us+f3'  # a voice of espeak-ng
SENTENCES = 40
GAIN = 0.1  # of the cosine, by the codec's speaker encoder
KEPT = ('model.safetensors', 'flow/campplus.safetensors')

_CODEC = flags.DEFINE_string('codec', None, 'Codec to begin with; the shipped one.')
_OUT = flags.DEFINE_string('out', None, 'JSON file to write.', required=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where it goes on; a temporary directory.')
_STEPS = flags.DEFINE_integer('steps', 100, 'Of training, of each network.', lower_bound=1)

# (w,) at 16 kHz -> a vector of who speaks
Judge = Callable[[np.ndarray], np.ndarray]


def record_somebody(folder: Path) -> None:
    """Writes SENTENCES recordings, each with its text.

    Raises:
      InputError: espeak-ng is not installed or lacks the voice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts = [fact for fact in world.build().facts if fact.spoken]
    for i, fact in enumerate(facts[:: len(facts) // SENTENCES][:SENTENCES]):
        text = fact.question if i % 2 else fact.sentence
        stem = folder / f'{i:03d}'
        try:
            subprocess.run(
                ['espeak-ng', '-v', SPEAKER, '-w', f'{stem}.wav', text], check=True,
                capture_output=True, text=True,
            )  # fmt: skip
        except FileNotFoundError:
            raise InputError('espeak-ng is not installed; run: apt-get install espeak-ng') from None
        except subprocess.CalledProcessError as error:
            raise InputError(f'espeak-ng has no voice {SPEAKER}: {error.stderr.strip()}') from None
        Path(f'{stem}.txt').write_text(text + '\n')


def judges(codec: str) -> dict[str, Judge]:
    """Those that say who speaks: the codec's own, and another where it is installed."""
    own = SpeakerEncoder(*codec_directory.open_campp(codec))
    found: dict[str, Judge] = {'speaker encoder': own}
    try:
        other = sound.voice()
    except InputError as error:
        logging.info('%s', error)
    else:
        found['resemblyzer'] = lambda wave: other(wave, fbank.RATE)
    return found


def moved(before: str, after: Path) -> dict[str, float]:
    """The largest change of a weight in each network that learnt.

    Raises:
      AssertionError: a network has another configuration than before.
    """
    found = {}
    for name in ('flow', 'hift'):
        open_network = getattr(codec_directory, f'open_{name}')
        (config, old), (same, new) = open_network(before), open_network(after)
        assert config == same, (config, same)
        found[name] = max(
            float(np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).max())
            for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
        )
    return found


def taught(codec: str, root: Path, steps: int) -> dict:
    """Everything; see the head of this file."""
    record_somebody(root / 'recordings')
    began = time.time()
    found = voice.teach(
        str(root / 'recordings'), codec, root / 'voice', root / 'codec', voice.Training(steps, 3e-4)
    )
    seconds = time.time() - began
    learnt, back = voice.spoken(str(root / 'recordings'))
    heard = [audio.load(r.audio, hearing.RATE) for r in back]
    nano = Assets.open(shipped())
    others = [nano.load(clip, hearing.RATE) for clip in nano.questions(HELDOUT)[: len(heard)]]
    codes = SpeechTokenizer.open(codec).encode(heard)
    old, new = SpeechDecoder.open(codec), SpeechDecoder.open(str(root / 'codec'))
    first, second = zip(*itertools.combinations(heard, 2), strict=True)
    pairs = {
        'before': (heard, voice.spoken_by(old, codes)),
        'told': (heard, voice.spoken_by(old, codes, voice.make_voice(codec, learnt))),
        'after': (heard, voice.spoken_by(new, codes)),
        'recordings_with_each_other': (first, second),
        'recordings_with_nano_voices': (heard, others),
    }
    return {
        'printed': found, 'steps': steps, 'seconds': round(seconds, 1),
        'kept_back': len(back),
        'seconds_of_speech_kept_back': round(sum(map(len, heard)) / hearing.RATE, 1),
        'likeness': {
            name: {what: round(voice.likeness(judge, *some), 4) for what, some in pairs.items()}
            for name, judge in judges(codec).items()
        },
        'moved': moved(codec, root / 'codec'),
        'unchanged': {stem: _digest(Path(codec, stem)) == _digest(root / 'codec' / stem)
                      for stem in KEPT},
    }  # fmt: skip


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(argv: list[str]) -> None:
    del argv
    codec = _CODEC.value or str(shipped() / 'codec')
    voice_stages.check_voiced(codec)
    with tempfile.TemporaryDirectory() as scratch:
        found = taught(codec, Path(_WORKDIR.value or scratch), _STEPS.value)
    gain = found['likeness']['speaker encoder']
    good = (
        gain['after'] >= gain['before'] + GAIN and all(found['unchanged'].values())
        and all(found['moved'].values())
    )
    logging.info('%s', found)
    record.write(
        _OUT.value, 'python -m experiments.proofs.run own_voice',
        {'good': good, 'codec_sha256': codec_hashes(codec), 'voice': f'espeak-ng -v {SPEAKER}',
         **found},
    )  # fmt: skip
    sys.exit(0 if good else 1)


if __name__ == '__main__':
    app.run(main)
