"""How a nano codec sounds and whose voice it has: HiFT alone, the whole way, prompts, streaming.

    JAX_PLATFORMS=cpu python -m experiments.proofs.nano_voice \
        [--codec runs/nano/codec] [--parts words,voices] --out experiments/proofs/nano_voice.json

Naturalness (DNSMOS) of recorded answers and questions, of what HiFT and Griffin-Lim make of their
true mels, and of what the codec makes of their codes with either. Words (the judge of the demo) of
the answers, decoded at once and streamed. Windows: the answers, STRUNG of them to about 16 s, are
spoken at once and in streams that look back on 1, 2, 4 and 8 s of speech; words and naturalness of
each answer by itself. Voices (`resemblyzer`): REPLIES recordings' codes, each spoken after a prompt
of another nano voice than theirs, in turn; right if that voice is the nearest of all. Shuffled,
replies are held to each other's prompts, a thousand times anew: chance is one in as many as there
are voices.

Fails unless every one of GATES holds.
"""

from collections.abc import Sequence
import dataclasses
import sys

from absl import app, flags, logging
import numpy as np

from experiments.nano import voice_stages
from experiments.proofs import record
from experiments.proofs.flow_stream import PASTS
from mossjax.data.clips import fit
from mossjax.data.speech import CODE_SAMPLES
from mossjax.eval import sound
from mossjax.eval.judge import Judge
from mossjax.infer.assets import HELDOUT, NEVER_SPOKEN, Assets, Clip, codec_hashes, shipped
from mossjax.infer.flow_stream import VOICE
from mossjax.infer.speech_decoder import SpeechDecoder
from mossjax.infer.speech_stream import SpeechSteps
from mossjax.infer.speech_tokenizer import SpeechTokenizer
from mossjax.infer.vocoder import GriffinLim, Vocoder
from mossjax.infer.voice_maker import VoiceMaker
from mossjax.models.flow import mel as features
from mossjax.models.flow.config import Window
from mossjax.models.tokenizer import mel as hearing

CLIPS, REPLIES = 12, 100
STRUNG = 8  # answers that are spoken as one
MIDDLE = 6  # recorded questions that make up a voice, none of them a prompt
GATES = {
    'HiFT below its recordings': lambda f: _below(f['naturalness']) <= 0.3,
    'DNSMOS of the whole way': lambda f: f['naturalness']['answers']['codec'] >= 2.0,
    'words, reconstructed': lambda f: f['words']['codec'] >= 0.97,
    'words, streamed as at once': lambda f: _apart(f['words']) <= 0.02,
    'voice of the prompt': lambda f: f['voices']['nearest'] >= 0.9,
}

_CODEC = flags.DEFINE_string('codec', None, 'Codec directory; the shipped one.')
_PARTS = flags.DEFINE_list('parts', None, 'What is made anew, the rest is kept; all by default.')
_OUT = flags.DEFINE_string('out', None, 'JSON file to write.', required=True)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A codec, and the recordings it is tried on."""

    assets: Assets
    root: str
    decoder: SpeechDecoder
    tokenizer: SpeechTokenizer

    def heard(self, clips: Sequence[Clip]) -> list[np.ndarray]:
        """Codes of recordings."""
        return self.tokenizer.encode([self.assets.load(clip, hearing.RATE) for clip in clips])

    def mels(self, clips: Sequence[Clip]) -> list[np.ndarray]:
        """The true mels, whole frames."""
        waves = [self.assets.load(clip, features.RATE) for clip in clips]
        return [
            np.asarray(features.log_mel(np.pad(wave, (0, -len(wave) % features.HOP))))
            for wave in waves
        ]  # fmt: skip


def spoken_by(vocoder: Vocoder, mels: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The wave of each mel."""
    lengths = np.array([len(mel) for mel in mels])
    padded = np.zeros((len(mels), lengths.max(), features.MELS), np.float32)
    for row, mel in zip(padded, mels, strict=True):
        row[: len(mel)] = mel
    waves = np.asarray(vocoder(padded, lengths))
    return [wave[: features.HOP * n] for wave, n in zip(waves, lengths, strict=True)]


def naturalness(codec: Opened) -> dict:
    """DNSMOS by kind of recording and who made the sound."""
    judge = sound.mos()
    kinds = {
        'answers': _some(list(codec.assets.answers.values())),
        'questions': _some(codec.assets.questions(HELDOUT)),
    }

    def overall(waves) -> float:
        return _mean([judge(wave, features.RATE)['overall'] for wave in waves])

    found = {}
    for kind, clips in kinds.items():
        true, made = codec.mels(clips), codec.decoder.mel_many(codec.heard(clips))
        found[kind] = {
            'recordings': overall([codec.assets.load(clip, features.RATE) for clip in clips]),
            'true mel': overall(spoken_by(codec.decoder.vocoder, true)),
            'true mel, Griffin-Lim': overall(spoken_by(GriffinLim(), true)),
            'codec': overall(spoken_by(codec.decoder.vocoder, made)),
            'codec, Griffin-Lim': overall(spoken_by(GriffinLim(), made)),
        }
        logging.info('%s: %s', kind, found[kind])
    return found


def words(codec: Opened) -> dict:
    """Shares of the recorded answers that the judge hears right, by what was done to them."""
    judge = _judge(codec.assets)
    wanted, clips = zip(*codec.assets.answers.items(), strict=True)
    codes = codec.heard(clips)
    speech = SpeechSteps(codec.decoder).sessions(len(codes))
    streamed = speech.feed(dict(enumerate(codes)), ending=range(len(codes)))
    ways = {
        'recordings': [codec.assets.load(clip, features.RATE) for clip in clips],
        'true mel': spoken_by(codec.decoder.vocoder, codec.mels(clips)),
        'codec': codec.decoder.decode_many(codes),
        'streamed': [streamed[i] for i in range(len(codes))],
    }
    found = {}
    for name, waves in ways.items():
        heard = judge.answers_of(waves, features.RATE)
        found[name] = _mean([a == b for a, b in zip(heard, wanted, strict=True)])
        logging.info('words, %s: %s', name, found[name])
    return found


def windows(codec: Opened) -> dict:
    """{how far a stream looks back: shares of words right, DNSMOS}, of long speech."""
    judge, mos = _judge(codec.assets), sound.mos()
    wanted, clips = zip(*codec.assets.answers.items(), strict=True)
    unit = CODE_SAMPLES[hearing.RATE]
    recorded = [codec.assets.load(clip, hearing.RATE) for clip in clips]
    sizes = [-(-len(wave) // unit) for wave in recorded]
    padded = [fit(wave, unit * n) for wave, n in zip(recorded, sizes, strict=True)]
    strings = [slice(i, i + STRUNG) for i in range(0, len(clips), STRUNG)]
    codes = codec.tokenizer.encode([np.concatenate(padded[string]) for string in strings])

    def judged(waves: Sequence[np.ndarray]) -> dict:
        parts = []
        for string, wave in zip(strings, waves, strict=True):
            parts += np.split(wave, CODE_SAMPLES[features.RATE] * np.cumsum(sizes[string])[:-1])
        heard = judge.answers_of(parts, features.RATE)
        return {
            'words': _mean([a == b for a, b in zip(heard, wanted, strict=True)]),
            'DNSMOS': _mean([mos(part, features.RATE)['overall'] for part in parts]),
        }

    found = {'at once': judged(codec.decoder.decode_many(codes))}
    for name, past in PASTS.items():
        window = Window(codec.decoder.config.chunk, past, VOICE)
        speech = SpeechSteps(codec.decoder, window=window).sessions(len(codes))
        spoken = speech.feed(dict(enumerate(codes)), ending=range(len(codes)))
        found[name] = judged([spoken[i] for i in range(len(codes))])
        logging.info('%s: %s', name, found[name])
    return found


def voices(codec: Opened) -> dict:
    """Shares of replies that are nearest to the voice of their prompt, and to that of another's."""
    judge, maker = sound.voice(), VoiceMaker.open(codec.root)
    by_speaker: dict[str, list[Clip]] = {}
    for clip in codec.assets.questions(HELDOUT) + codec.assets.questions(NEVER_SPOKEN):
        by_speaker.setdefault(clip.speaker, []).append(clip)
    names = sorted(by_speaker)
    load = codec.assets.load
    middles = np.array([
        _unit(sum(judge(load(clip, hearing.RATE), hearing.RATE) for clip in by_speaker[n][:MIDDLE]))
        for n in names
    ])  # fmt: skip
    prompts = [
        maker.make(load(by_speaker[name][MIDDLE], hearing.RATE), hearing.RATE) for name in names
    ]
    nearest, wanted = [], []
    for place, prompt in enumerate(prompts):
        # Codes of the other voices, in turn.
        others = [by_speaker[name] for i, name in enumerate(names) if i != place]
        clips = [clip for turn in zip(*others, strict=False) for clip in turn]
        waves = codec.decoder.decode_many(
            codec.heard(clips[: REPLIES // len(names)]), voice=prompt
        )
        vectors = np.array([judge(wave, features.RATE) for wave in waves])
        nearest += np.argmax(vectors @ middles.T, axis=1).tolist()
        wanted += [place] * len(waves)
        logging.info('%s: nearest %s', names[place], nearest[-len(waves) :])
    nearest, wanted = np.array(nearest), np.array(wanted)
    deal = np.random.default_rng(0).permutation
    return {
        'voices': names, 'replies': len(nearest), 'nearest': _mean(nearest == wanted),
        'nearest, prompts shuffled': _mean([nearest == deal(wanted) for _ in range(1000)]),
        'nearest, by voice': {
            name: _mean(nearest[wanted == i] == i) for i, name in enumerate(names)
        },
    }  # fmt: skip


def _judge(assets: Assets) -> Judge:
    facts = assets.facts.values()
    return Judge([fact.answer for fact in facts], [fact.question for fact in facts])


def _below(found: dict) -> float:
    """How far HiFT on the true mel is below the recordings, in the worse kind of them."""
    return max(kind['recordings'] - kind['true mel'] for kind in found.values())


def _apart(found: dict) -> float:
    return round(abs(found['streamed'] - found['codec']), 4)


def _mean(x: Sequence) -> float:
    return round(float(np.mean(x)), 4)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


def _some(clips: Sequence[Clip]) -> list[Clip]:
    return [clips[i] for i in np.linspace(0, len(clips) - 1, CLIPS).astype(int)]


PARTS = {part.__name__: part for part in (naturalness, words, windows, voices)}


def main(argv: list[str]) -> None:
    del argv
    assets = Assets.open(shipped())
    root = _CODEC.value or str(assets.codec)
    voice_stages.check_voiced(root)
    wanted = record.parts(_PARTS.value, PARTS)
    hashes, old = codec_hashes(root), record.read(_OUT.value)
    kept = old if old.get('codec_sha256') == hashes else {}
    if missing := set(PARTS) - {*wanted, *kept}:
        sys.exit(f'--parts: {_OUT.value} has no {", ".join(sorted(missing))} of this codec')
    codec = Opened(assets, root, SpeechDecoder.open(root), SpeechTokenizer.open(root))
    found = {name: make(codec) if name in wanted else kept[name] for name, make in PARTS.items()}
    gates = {name: bool(holds(found)) for name, holds in GATES.items()}
    logging.info('%s', gates)
    good = all(gates.values())
    record.write(
        _OUT.value, 'python -m experiments.proofs.run nano_voice',
        {'good': good, 'codec_sha256': hashes, 'vocoder': codec.decoder.vocoder.name,
         'gates': gates, **found},
    )  # fmt: skip
    sys.exit(0 if good else 1)


if __name__ == '__main__':
    app.run(main)
