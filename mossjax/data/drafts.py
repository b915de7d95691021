"""What a manifest entry is good for: drafts of examples, made without having any codes.

    sft          a dialogue in four modes: speech or text in, speech or text out (s2s s2t t2s t2t)
    asr, tts     speech to its words, words to speech
    interleaved  a recording cut at word borders, pieces alternating between speech and text
    speech       speech alone
    text         text alone

A draft knows which speech it needs and how it is laid out; `data.corpus` makes examples of it.
Speech that is heard (a user's turn, what is written down, a passage) may be any version of its
codes; what the model is to say in a reply is always the undisturbed one.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses

import numpy as np

from mossjax.data import recipes
from mossjax.data.chunks import CODES_PER_SECOND, chunks_at_words, word_borders
from mossjax.data.codes import Version
from mossjax.data.format import Format
from mossjax.data.manifest import Dialogue, Entry, Labels, Recording, Turn
from mossjax.data.rows import Example
from mossjax.errors import InputError
from mossjax.models.lm import dialogue

MODES = ('s2s', 's2t', 't2s', 't2t')
MIXED = 'mixed'
SIDES = {'s': 'speech', 't': 'text'}
SLACK_SECONDS = 0.5  # that words may end after their recording


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What to make of entries.

    Attributes:
      name: one of RECIPES.
      length: positions an example may have; None for any number.
      modes: which of MODES (sft).
      seconds: bounds of the length of a chunk (interleaved).
      corrupt: a fraction of the codes of heard speech, drawn up to this, is replaced at random
        (sft, asr).
    """

    name: str
    length: int | None = None
    modes: tuple[str, ...] = MODES
    seconds: tuple[float, float] = (3.0, 6.0)
    corrupt: float = 0.0

    def __post_init__(self):
        if self.name not in RECIPES:
            raise InputError(f'recipe {self.name!r}; choose one of {", ".join(RECIPES)}')
        wrong = [mode for mode in self.modes if mode not in MODES]
        if wrong or not self.modes:
            raise InputError(f'modes {wrong or "are none"}; choose from {", ".join(MODES)}')


@dataclasses.dataclass(frozen=True)
class Speech:
    """Speech that an example needs: a recording, or codes as they are.

    Attributes:
      heard: any version will do; otherwise the undisturbed one is meant.
      noisy: codes may be corrupted.
    """

    audio: str | None
    codes: tuple[int, ...] | None = None
    heard: bool = False
    noisy: bool = False


@dataclasses.dataclass(frozen=True)
class Draft:
    """An example to be.

    Attributes:
      kind: a mode (sft) or the name of the recipe.
      name: of the entry, for messages.
      speech: what it needs, in order.
      lay: (versions of that speech, form, rng) -> examples.
    """

    kind: str
    name: str
    speech: tuple[Speech, ...]
    lay: Callable[[list[Version], Format, np.random.Generator], list[Example]]


@dataclasses.dataclass(frozen=True)
class Reject:
    """What an entry could not become, and why; `detail` is about this entry alone."""

    kind: str
    name: str
    reason: str
    detail: str = ''


def drafts(entry: Entry, recipe: Recipe) -> list[Draft | Reject]:
    """What the recipe can make of an entry, and what it cannot for want of material."""
    return list(RECIPES[recipe.name](entry, recipe))


# ------------------------------------------------------------------------------- what is said


@dataclasses.dataclass(frozen=True)
class Utterance:
    """Something said: a recording or a spoken turn, with its words where they are known."""

    name: str
    role: str
    audio: str | None
    codes: tuple[int, ...] | None
    text: str
    words: Labels = ()

    def speech(self, **how: bool) -> Speech:
        return Speech(self.audio, self.codes, **how)


def name_of(entry: Entry) -> str:
    """What messages call an entry: its first recording, or the beginning of its first text."""
    if isinstance(entry, Recording):
        return entry.audio
    turns = entry.turns if isinstance(entry, Dialogue) else (entry,)
    audio = [turn.audio for turn in turns if isinstance(turn, Turn) and turn.audio]
    texts = [turn.text for turn in turns if turn.text]
    return audio[0] if audio else repr(texts[0][:40]) if texts else 'an entry without words'


def _utterances(entry: Entry) -> list[Utterance]:
    if isinstance(entry, Recording):
        return [
            Utterance(entry.audio, 'assistant', entry.audio, None, entry.text, entry.words)
        ]
    turns = entry.turns if isinstance(entry, Dialogue) else ()
    return [
        Utterance(turn.audio or name_of(entry), turn.role, turn.audio, turn.codes, turn.text or '')
        for turn in turns if _has(turn, 's')
    ]  # fmt: skip


def _has(turn: Turn, side: str) -> bool:
    """Whether a turn can be given as speech ('s') or text ('t')."""
    if side == 's':
        return turn.audio is not None or turn.codes is not None
    return bool(turn.text and turn.text.strip())


# -------------------------------------------------------------------------------- the recipes


def _sft(entry: Entry, recipe: Recipe) -> Iterator[Draft | Reject]:
    name = name_of(entry)
    if not isinstance(entry, Dialogue):
        yield Reject('sft', name, 'no dialogue: sft takes turns of a user and an assistant')
    elif entry.turns[-1].role != 'assistant':
        yield Reject('sft', name, "the last turn is not the assistant's")
    elif not all(_has(t, 's') or _has(t, 't') for t in entry.turns if t.role != 'system'):
        yield Reject('sft', name, 'a turn is empty')
    else:
        lacking = {mode: _lacking(entry, mode) for mode in MODES}
        if all(lacking.values()) and set(recipe.modes) == set(MODES):
            yield _dialogue(entry, MIXED, name)  # speech and text by turns: as it stands
            return
        for mode in recipe.modes:
            if lacking[mode]:
                yield Reject(mode, name, lacking[mode])
            else:
                yield _dialogue(entry, mode, name)


def _lacking(entry: Dialogue, mode: str) -> str:
    """What stands in the way of a mode; '' if nothing does."""
    for role, side in zip(('user', 'assistant'), mode[::2], strict=True):
        if not all(_has(turn, side) for turn in entry.turns if turn.role == role):
            return f'no {SIDES[side]} of a turn of the {role}'
    return ''


def _dialogue(entry: Dialogue, mode: str, name: str) -> Draft:
    """User turns in the one medium, assistant turns in the other; MIXED: spoken where they can."""
    user, assistant = 'ss' if mode == MIXED else mode[::2]
    wanted = {'system': 't', 'user': user, 'assistant': assistant}
    as_speech = [
        _has(turn, 's') and (wanted[turn.role] != 't' or not turn.text) for turn in entry.turns
    ]
    speech = tuple(
        Speech(turn.audio, turn.codes, heard=turn.role == 'user', noisy=turn.role == 'user')
        for turn, spoken in zip(entry.turns, as_speech, strict=True) if spoken
    )  # fmt: skip

    def lay(versions, form, rng):
        del rng
        codes = iter(versions)
        turns = [
            dialogue.Turn(turn.role, next(codes).codes if spoken else turn.text)
            for turn, spoken in zip(entry.turns, as_speech, strict=True)
        ]
        return [recipes.dialogue(turns, form, name=name)]

    return Draft(mode, name, speech, lay)


def _transcribed(kind: str, entry: Entry, of_roles: Sequence[str]) -> Iterator[Utterance | Reject]:
    """What is said by these roles and written down."""
    found = [u for u in _utterances(entry) if u.role in of_roles]
    if not found:
        yield Reject(kind, name_of(entry), 'no speech')
    for said in found:
        yield said if said.text.strip() else Reject(kind, said.name, 'no text')


def _asr(entry: Entry, recipe: Recipe) -> Iterator[Draft | Reject]:
    del recipe
    for said in _transcribed('asr', entry, dialogue.ROLES):
        yield said if isinstance(said, Reject) else Draft(
            'asr', said.name, (said.speech(heard=True, noisy=True),),
            lambda v, form, _, said=said: [recipes.asr(v[0].codes, said.text, form, said.name)],
        )  # fmt: skip


def _tts(entry: Entry, recipe: Recipe) -> Iterator[Draft | Reject]:
    """Of a dialogue, what the assistant says: replies come in its voice."""
    del recipe
    for said in _transcribed('tts', entry, ('assistant',)):
        yield said if isinstance(said, Reject) else Draft(
            'tts', said.name, (said.speech(),),
            lambda v, form, _, said=said: [recipes.tts(said.text, v[0].codes, form, said.name)],
        )  # fmt: skip


def _interleaved(entry: Entry, recipe: Recipe) -> Iterator[Draft | Reject]:
    name = name_of(entry)
    if not isinstance(entry, Recording):
        yield Reject('interleaved', name, 'no recording with "words"')
    elif not entry.words:
        yield Reject('interleaved', name, 'no "words": the ends of words or phrases in seconds')
    else:
        def lay(versions, form, rng):
            codes, offset = versions[0].codes, versions[0].offset
            _check_words(entry, len(codes) / CODES_PER_SECOND - offset)
            chunks = chunks_at_words(entry.words, codes, rng, recipe.seconds, offset, entry.text)
            whole = recipes.interleaved(chunks, form, rng, name)
            return recipes.pieces(whole, form, recipe.length) if recipe.length else [whole]

        yield Draft('interleaved', name, (Speech(entry.audio, heard=True),), lay)


def _check_words(entry: Recording, seconds: float) -> None:
    """Raises InputError for words of another recording, or in another unit."""
    end = entry.words[-1][1]
    if end > seconds + SLACK_SECONDS:
        raise InputError(
            f'its last word ends after {end:g} s, the recording after {seconds:.2f} s; give the '
            'ends of words in seconds'
        )


def _speech(entry: Entry, recipe: Recipe) -> Iterator[Draft | Reject]:
    found = _utterances(entry)
    if not found:
        yield Reject('speech', name_of(entry), 'no speech')
    for said in found:
        def lay(versions, form, rng, said=said):
            del rng
            codes = versions[0].codes
            borders = word_borders(said.words, len(codes), versions[0].offset)
            return recipes.speech_only(codes, form, recipe.length, borders, said.name)

        yield Draft('speech', said.name, (said.speech(heard=True),), lay)


def _text(entry: Entry, recipe: Recipe) -> Iterator[Draft | Reject]:
    name = name_of(entry)
    if isinstance(entry, Dialogue):
        yield Reject('text', name, 'a dialogue; its texts are mode t2t of sft')
    elif not entry.text.strip():
        yield Reject('text', name, 'no text')
    else:
        def lay(versions, form, rng):
            del versions, rng
            whole = recipes.text_only(entry.text, form, name)
            return recipes.pieces(whole, form, recipe.length) if recipe.length else [whole]

        yield Draft('text', name, (), lay)


RECIPES: dict[str, Callable[[Entry, Recipe], Iterator[Draft | Reject]]] = {
    'sft': _sft, 'asr': _asr, 'tts': _tts, 'interleaved': _interleaved, 'speech': _speech,
    'text': _text,
}  # fmt: skip
