"""The tour of a checkpoint: held-out questions in all four modes, judged, with their controls.

`tour` asks the model everything in four batches and lets the judge listen; what it returns is a
record of single answers, from which `eval.demo_table` makes every figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import time

import numpy as np

from mossjax.convert.placement import Put, on_host
from mossjax.errors import InputError
from mossjax.eval.judge import Judge
from mossjax.eval.spoken_qa import SILENCES, same_words
from mossjax.infer.assets import HELDOUT, NEVER_SPOKEN, Assets, Clip
from mossjax.infer.chat import INPUT_RATE, OUTPUT_RATE, Chat, Reply
from mossjax.infer.sampling import Settings
from mossjax.models.lm.dialogue import Turn

# name: (what is asked, what is answered)
MODES = {
    'speech to speech': ('speech', 'audio'),
    'speech to text': ('speech', 'text'),
    'text to speech': ('text', 'audio'),
    'text to text': ('text', 'text'),
}
LOAD, HEAR, SPEAK, JUDGE = 'load', 'tokenize', 'decode', 'judge'
STEPS = (LOAD, HEAR, *MODES, SPEAK, JUDGE)
Codes = tuple[int, ...]
LONGEST = 64  # rows of a reply, 5 s: over twice the longest answer


@dataclasses.dataclass(frozen=True)
class Answer:
    """One question in one mode, and what came of it.

    Attributes:
      split: 'heldout' or 'never_spoken'.
      expected: the right answer word.
      speaker, rate: of the recorded question, also where it was asked in writing.
      text: the reply in writing ('' if spoken). codes: the reply in speech.
      seconds: of the spoken reply. heard: the answer the judge heard in it, None for none.
      reason: why the reply ended, 'stop' or 'length'.
    """

    mode: str
    split: str
    fact: int
    question: str
    expected: str
    speaker: str
    rate: float
    text: str
    codes: list[int]
    seconds: float
    heard: str | None
    reason: str
    right: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Tour:
    """What happened.

    Attributes:
      answers: all single answers, mode by mode, in the order asked.
      controls: name -> single verdicts, see `_controls`.
      seconds: wall time of each step.
      settings: how replies were drawn.
      asked: recorded questions, with `heard` (codes) and `waves` (16 kHz) of each.
      wavs: codes -> (w,) waveform at 24 kHz, of everything that was said.
    """

    answers: list[Answer]
    controls: dict[str, list[dict]]
    seconds: dict[str, float]
    settings: Settings
    asked: list[Clip]
    heard: list[np.ndarray]
    waves: list[np.ndarray]
    wavs: dict[Codes, np.ndarray]


class Clock:
    """Wall time of named steps; `show` is told each name when it starts."""

    def __init__(self, show: Callable[[str], None]):
        self.seconds: dict[str, float] = {}
        self._show = show

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._show(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)


def tour(
    assets: Assets, count: int | None = None, show: Callable[[str], None] = lambda name: None,
    put: Put | None = None,
) -> Tour:
    """Runs everything.

    Args:
      count: questions of each split; all by default.
      show: told the name of each of STEPS when it starts.
      put: how the language model is held, float32 by default; see `Chat.open`.

    Raises:
      InputError: `count` is no positive number, or files that do not fit together.
    """
    if count is not None and count < 1:
        raise InputError(f'{count} questions: ask at least one')
    clock = Clock(show)
    asked = [*assets.questions(HELDOUT)[:count], *assets.questions(NEVER_SPOKEN)[:count]]
    if not asked:
        raise InputError(f'{assets.root} has no recorded questions; pack it again')
    waves = [assets.load(clip, INPUT_RATE) for clip in asked]
    words = list(assets.answers)
    sources = [assets.load(assets.answers[word], INPUT_RATE) for word in words]
    facts = assets.facts.values()
    judge = Judge([f.answer for f in facts], [f.question for f in facts])
    with clock(LOAD):
        # Stored in bfloat16, computed in float32: the faster of the two on a CPU.
        chat = Chat.open(assets.lm, assets.codec, put=put or on_host('float32'))
    settings = chat.settings.greedy()
    settings = settings.at_most(min(LONGEST, settings.max_new_tokens))
    with clock(HEAR):
        codes = chat.encode([*waves, *sources])
    heard, recoded = codes[: len(waves)], codes[len(waves) :]
    silent = dataclasses.replace(chat, decode=None)  # many replies are the same: decoded below
    replies = {}
    for mode, (medium, kind) in MODES.items():
        questions = heard if medium == 'speech' else [clip.text for clip in asked]
        with clock(mode):
            dialogues = [[Turn('user', question)] for question in questions]
            replies[mode] = silent.replies(dialogues, kind, settings)
    with clock(SPEAK):
        said = [reply.codes for mode in MODES for reply in replies[mode] if len(reply.codes)]
        different = list(dict.fromkeys(key(codes) for codes in [*recoded, *said]))
        made = chat.decode([np.array(codes, np.int32) for codes in different])
        wavs = dict(zip(different, made, strict=True))
    with clock(JUDGE):
        verdicts = dict(zip(wavs, judge.answers_of(made, OUTPUT_RATE), strict=True))
        controls = _controls(judge, words, sources, recoded, asked, waves, verdicts)
    answers = [
        _answer(mode, clip, assets, reply, wavs, verdicts)
        for mode in MODES
        for clip, reply in zip(asked, replies[mode], strict=True)
    ]
    return Tour(answers, controls, clock.seconds, settings, asked, heard, waves, wavs)


def key(codes: Sequence[int]) -> Codes:
    return tuple(int(code) for code in codes)


def _controls(judge, words, sources, recoded, asked, waves, verdicts) -> dict[str, list[dict]]:
    """What the judge makes of recordings, of their reconstructions, of silence and of questions."""
    silences = [np.zeros(int(s * INPUT_RATE), np.float32) for s in SILENCES]
    ears = iter(judge.answers_of([*sources, *silences, *waves], INPUT_RATE))
    return {
        'source': [
            {'word': word, 'seconds': len(wav) / INPUT_RATE, 'heard': next(ears)}
            for word, wav in zip(words, sources, strict=True)
        ],
        'reconstructed': [
            {'word': word, 'codes': codes.tolist(), 'heard': verdicts[key(codes)]}
            for word, codes in zip(words, recoded, strict=True)
        ],
        'silence': [{'seconds': seconds, 'heard': next(ears)} for seconds in SILENCES],
        'questions': [
            {'question': clip.text, 'speaker': clip.speaker, 'heard': next(ears)} for clip in asked
        ],
    }


def _answer(
    mode: str, clip: Clip, assets: Assets, reply: Reply, wavs: dict[Codes, np.ndarray],
    verdicts: dict[Codes, str | None],
) -> Answer:
    fact = assets.facts[clip.fact]
    spoken = MODES[mode][1] == 'audio'
    wav = wavs.get(key(reply.codes), ())  # no codes, no sound
    heard = verdicts.get(key(reply.codes))
    return Answer(
        mode=mode, split=clip.split, fact=fact.id, question=clip.text, expected=fact.answer,
        speaker=clip.speaker, rate=clip.rate, text='' if spoken else reply.text,
        codes=reply.codes.tolist(),
        seconds=len(wav) / OUTPUT_RATE,
        heard=heard, reason=reply.reason,
        right=heard == fact.answer if spoken else same_words(reply.text, fact.sentence),
    )  # fmt: skip
