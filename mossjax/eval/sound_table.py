"""How a tour sounds: the judges of `eval.sound`, each figure beside that of the recordings."""

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np

from mossjax.errors import InputError
from mossjax.eval import sound
from mossjax.eval.demo import Tour, key
from mossjax.infer.assets import HELDOUT, Assets
from mossjax.infer.chat import INPUT_RATE, OUTPUT_RATE

CLIPS = 12  # of each kind: DNSMOS and Whisper take a second or two for each
NEAREST = 6  # recorded questions that make up a voice


@dataclasses.dataclass(frozen=True)
class Figure:
    """One line.

    Attributes:
      recordings, ours: means over what could be judged; None where nothing could.
      count: how many of ours that were.
    """

    name: str
    recordings: float | None
    ours: float | None
    count: int
    meaning: str


@dataclasses.dataclass(frozen=True, eq=False)
class Said:
    """A waveform, its rate in Hz, and what should be said in it."""

    wav: np.ndarray
    rate: int
    sentence: str


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
    """What is judged.

    Attributes:
      recordings: of the answers. copies: the same after speech codes and back.
      replies: spoken replies to spoken questions, no two alike.
      voices: speaker -> recorded questions.
      speaker: of the recordings of answers, whose voice replies should have.
    """

    recordings: list[Said]
    copies: list[Said]
    replies: list[Said]
    voices: dict[str, list[Said]]
    speaker: str


def figures(
    tour: Tour, assets: Assets, most: int = CLIPS
) -> tuple[list[Figure], list[str]]:
    """Every figure of the judges that are installed, and what the others lack.

    Args:
      most: clips of each kind that are judged.
    """
    found, absent, material = [], [], gather(tour, assets, most)
    for open_judge, lines in JUDGES.items():
        try:
            judge = open_judge()
        except InputError as error:
            absent.append(str(error))
            continue
        found += lines(judge, material)
    return found, absent


def gather(tour: Tour, assets: Assets, most: int) -> Material:
    """Recordings from the whole list of answers, and the first replies that differ."""
    again = tour.controls['reconstructed']
    some = [again[i] for i in np.unique(np.linspace(0, len(again) - 1, most).astype(int))]
    clips = [assets.answers[verdict['word']] for verdict in some]
    replies: dict = {}
    for answer in tour.answers:
        if answer.mode == 'speech to speech' and answer.split == HELDOUT and answer.codes:
            said = assets.facts[answer.fact].sentence
            replies.setdefault(key(answer.codes), Said(_wav(tour, answer.codes), OUTPUT_RATE, said))
    voices: dict[str, list[Said]] = {}
    for clip, wav in zip(tour.asked, tour.waves, strict=True):
        voices.setdefault(clip.speaker, []).append(Said(wav, INPUT_RATE, clip.text))
    return Material(
        recordings=[Said(assets.load(c, INPUT_RATE), INPUT_RATE, c.text) for c in clips],
        copies=[
            Said(_wav(tour, verdict['codes']), OUTPUT_RATE, clip.text)
            for verdict, clip in zip(some, clips, strict=True)
        ],
        replies=list(replies.values())[:most],
        voices={speaker: said[:NEAREST] for speaker, said in voices.items()},
        speaker=clips[0].speaker,
    )


def _wav(tour: Tour, codes: Sequence[int]) -> np.ndarray:
    return tour.wavs[key(codes)]


# --------------------------------------------------------------------------- what each one says


def _mos(judge: sound.Mos, material: Material) -> list[Figure]:
    recordings, replies = (
        _each(lambda said: judge(said.wav, said.rate), kind)
        for kind in (material.recordings, material.replies)
    )
    return [
        _figure(name, [x[score] for x in recordings], [x[score] for x in replies], meaning)
        for name, score, meaning in (
            ('DNSMOS', 'overall', 'naturalness, 1 to 5; silence gets 1.8'),
            ('DNSMOS p808', 'p808', 'the same by another network'),
        )
    ]


def _voice(judge: sound.Voice, material: Material) -> list[Figure]:
    def vectors(kind):
        return np.array(_each(lambda said: judge(said.wav, said.rate), kind))

    recordings, replies = vectors(material.recordings), vectors(material.replies)
    voices = {speaker: vectors(said) for speaker, said in material.voices.items()}
    if not len(recordings) or not all(map(len, voices.values())):
        return []
    total = recordings.sum(0)
    # A recording is compared with the others: with itself it would agree.
    own = [x @ _unit(total - x) for x in recordings] if len(recordings) > 1 else []
    names, middles = list(voices), np.array([_unit(x.mean(0)) for x in voices.values()])

    def nearest(found):
        return [float(names[int(np.argmax(middles @ x))] == material.speaker) for x in found]

    return [
        _figure('similarity', own, [x @ _unit(total) for x in replies],
                'of the voice with the recorded answers, at most 1'),
        _figure('nearest voice', nearest(recordings), nearest(replies),
                f"share nearest to {material.speaker}'s questions of {len(names)} voices"),
    ]  # fmt: skip


def _words(judge: sound.Words, material: Material) -> list[Figure]:
    def right(said: Said) -> float:
        return float(sound.spelt(judge(said.wav, said.rate)) == said.sentence)

    heard = (_each(right, kind) for kind in (material.recordings, material.replies))
    return [_figure('whisper', *heard, 'share heard as exactly the right sentence, any vocabulary')]


def _likeness(name: str, meaning: str):
    def lines(judge: sound.Likeness, material: Material) -> list[Figure]:
        pairs = list(zip(material.recordings, material.copies, strict=True))
        copies = _each(lambda x: judge(x[0].wav, x[0].rate, x[1].wav, x[1].rate), pairs)
        same = _each(lambda x: judge(x[0].wav, x[0].rate, x[0].wav, x[0].rate), pairs[:1])
        return [_figure(name, same, copies, meaning)]

    return lines


JUDGES: dict[Callable, Callable] = {
    sound.mos: _mos,
    sound.voice: _voice,
    sound.words: _words,
    sound.pesq: _likeness('PESQ', 'recorded answers after speech codes and back, -0.5 to 4.64'),
    sound.stoi: _likeness('STOI', 'the same, 0 to 1'),
}


def _each(judge: Callable, kind: Sequence) -> list:
    """The verdicts on what can be judged: silence, for one, has no speaker."""
    found = []
    for said in kind:
        try:
            found.append(judge(said))
        except InputError:
            continue
    return found


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


def _figure(name: str, recordings: Sequence, ours: Sequence, meaning: str) -> Figure:
    first, second = (float(np.mean(x)) if len(x) else None for x in (recordings, ours))
    return Figure(name, first, second, len(ours), meaning)


# -------------------------------------------------------------------------------------- as text


def table(found: Sequence[Figure], absent: Sequence[str]) -> str:
    """The figures as text, and what was not judged for want of a package."""
    text = []
    if found:
        width = max(len(figure.name) for figure in found)
        text = ['How it sounds: recordings, and the replies that the model speaks (not gated)',
                f'{"":{width + 2}} recordings    ours  count  meaning']  # fmt: skip
        text += [
            f'  {f.name:{width}}{_number(f.recordings):>12}{_number(f.ours):>8}  {f.count:5d}  '
            f'{f.meaning}' for f in found
        ]  # fmt: skip
    return '\n'.join([*text, *(f'Not judged: {message}' for message in absent)])


def _number(x: float | None) -> str:
    return '-' if x is None else f'{x:.2f}'
