"""Recipes: how one training example is laid out, for the stages of the paper.

    stage 1 and 2   interleaved, speech_only, asr, tts, dialogue(supervise=everything), text_only
    SFT             dialogue(supervise=replies) in four modes: speech or text in, speech or text out

A recipe lays out rows and says which of them are targets; `example` turns that into labels. A row
is a target of one channel only: text rows (start of speech among them) of the text head, speech
rows (codes and end of speech) of the audio head. So the row after end of speech is predicted by
the text head from the end-of-speech row, and the first code from the start-of-speech row.

Start of speech stands in the prompt when a spoken reply is wanted, so in a dialogue it is never a
target. Masks compose: `without_text_loss(interleaved(...))`. What is longer than a row goes on in
another (`pieces`, `speech_only`); a dialogue cannot. Which recordings become which examples is the
affair of `data.corpus`.
Source: arXiv 2510.00499, pre-training and SFT sections.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math

import numpy as np

from mossjax.data.chunks import Chunk
from mossjax.data.format import Format
from mossjax.data.rows import IGNORE, Example, cut
from mossjax.errors import InputError
from mossjax.models.lm.dialogue import Turn, turn_segments
from mossjax.models.lm.grid import GridIds, concatenate, speech_rows, text_rows


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows of one turn: `kind` is 'opening', 'content' or 'closing'."""

    rows: np.ndarray  # int32 (t, 2)
    role: str
    kind: str


# Part -> bool (t,): which of its rows are targets.
Supervise = Callable[[Part], np.ndarray]


def replies(part: Part) -> np.ndarray:
    """Assistant content and the <|im_end|> after it (not the newline that follows)."""
    wanted = np.zeros(len(part.rows), bool)
    if part.role == 'assistant' and part.kind == 'content':
        wanted[:] = True
    if part.role == 'assistant' and part.kind == 'closing':
        wanted[0] = True
    return wanted


def everything(part: Part) -> np.ndarray:
    """Every row of every turn, as in pre-training."""
    return np.ones(len(part.rows), bool)


SUPERVISE: dict[str, Supervise] = {'reply': replies, 'all': everything}


def example(rows: np.ndarray, targets: np.ndarray, ids: GridIds, name: str = '') -> Example:
    """Rows int32 (t, 2) and targets bool (t,) -> Example with shifted labels.

    Row t + 1, if it is a target, becomes the label at t of the channel it belongs to.
    """
    labels = np.full_like(rows, IGNORE)
    is_speech = rows[:, 0] == ids.speech
    for channel, mine in ((0, ~is_speech), (1, is_speech)):
        wanted = (targets & mine)[1:]
        labels[:-1, channel][wanted] = rows[1:, channel][wanted]
    return Example(rows, labels, name)


def dialogue(
    turns: Sequence[Turn], form: Format, supervise: str = 'reply', name: str = ''
) -> Example:
    """A dialogue that ends with an assistant turn; a system turn is added if none leads.

    Args:
      turns: content is text or codes; the kind of the last turn decides the system prompt.
      supervise: 'reply' (every assistant turn) or 'all' (every row).

    Raises:
      InputError: the last turn is not the assistant's, or a turn is bad.
    """
    if supervise not in SUPERVISE:
        raise InputError(f'supervise={supervise!r}; choose one of {", ".join(SUPERVISE)}.')
    if not turns or turns[-1].role != 'assistant':
        raise InputError(f'dialogue {name!r}: the last turn must be the assistant reply to learn.')
    if turns[0].role != 'system':
        reply = 'text' if isinstance(turns[-1].content, str) else 'audio'
        # Always first: a system turn after the reply would teach the wrong order.
        turns = [Turn('system', getattr(form.style.prompts, reply)), *turns]
    parts = [
        Part(rows, turn.role, kind)
        for turn in turns
        for kind, rows in zip(
            ('opening', 'content', 'closing'),
            turn_segments(turn, form.tokenizer, form.ids, form.style),
            strict=True,
        )
    ]
    rows = concatenate([part.rows for part in parts])
    targets = np.concatenate([SUPERVISE[supervise](part) for part in parts])
    return example(rows, targets & ~_opens_speech(rows, form.ids), form.ids, name)


def asr(codes: Sequence[int], text: str, form: Format, name: str = '') -> Example:
    """Speech in, its transcript out; the transcript is supervised."""
    system = Turn('system', form.style.prompts.asr)
    turns = [system, Turn('user', codes), Turn('assistant', text)]
    return dialogue(turns, form, 'reply', name)


def tts(text: str, codes: Sequence[int], form: Format, name: str = '') -> Example:
    """Text in, the same words spoken out; the speech is supervised."""
    system = Turn('system', form.style.prompts.tts)
    turns = [system, Turn('user', text), Turn('assistant', codes)]
    return dialogue(turns, form, 'reply', name)


def text_only(text: str, form: Format, name: str = '') -> Example:
    """A document and <|endoftext|>, all supervised."""
    ids = [*form.tokenizer.encode_plain(text), form.tokenizer.endoftext]
    rows = text_rows(ids, form.ids)
    return example(rows, np.ones(len(rows), bool), form.ids, name)


def speech_only(
    codes: np.ndarray, form: Format, length: int | None = None, borders: Sequence[int] = (),
    name: str = '',
) -> list[Example]:
    """Speech and <|endoftext|>, all supervised; several examples if it is longer than a row.

    Each piece is opened and closed as speech. An end of speech that only the row length set is no
    target, and <|endoftext|> follows the last piece alone.

    Args:
      codes: (n,).
      length: positions an example may have.
      borders: numbers of codes after which it may be cut (ends of words); where none is near, the
        pieces are of like lengths.
    """
    closing = text_rows([form.tokenizer.endoftext], form.ids)
    room = len(codes) if length is None else length - 3  # both ends of speech, and <|endoftext|>
    if len(codes) and room < 1:
        raise InputError(f'speech {name!r} does not fit rows of {length}; raise the row length.')
    examples, start = [], 0
    while True:
        stop = _stop(start, len(codes), room, borders)
        last = stop == len(codes)
        rows = speech_rows(codes[start:stop], form.ids, name or 'speech')
        targets = np.ones(len(rows), bool)
        targets[-1] = last
        if last:
            rows = concatenate([rows, closing])
            targets = np.append(targets, True)
        examples.append(example(rows, targets, form.ids, name))
        if last:
            return examples
        start = stop


def _stop(start: int, size: int, room: int, borders: Sequence[int]) -> int:
    """Where the piece of at most `room` codes that begins at `start` ends."""
    if size - start <= room:
        return size
    near = [border for border in borders if start + room // 2 < border <= start + room]
    return max(near, default=start + math.ceil((size - start) / math.ceil((size - start) / room)))


def pieces(item: Example, form: Format, length: int) -> list[Example]:
    """A passage as examples of at most `length` positions, cut where text is written.

    A piece ends with a row of text and the next one begins with the same row, so that no target is
    lost, no speech is cut, and none goes without its start and its end.

    Raises:
      InputError: a stretch of speech in it is longer than a row.
    """
    text = item.tokens[:, 0]
    return cut(item, length, (text != form.ids.speech) & (text != form.ids.sosp))


def interleaved(
    chunks: Sequence[Chunk], form: Format, rng: np.random.Generator, name: str = ''
) -> Example:
    """A passage whose chunks alternate between speech and text; `rng` draws which goes first.

    Ends with <|endoftext|>. Everything is supervised, the switches to speech included.
    """
    speak_first = int(rng.integers(2))
    segments = [
        speech_rows(codes, form.ids, f'{name} chunk {i}')
        if (i + speak_first) % 2
        else text_rows(form.tokenizer.encode_plain(text), form.ids)
        for i, (text, codes) in enumerate(chunks)
    ]
    rows = concatenate([*segments, text_rows([form.tokenizer.endoftext], form.ids)])
    return example(rows, np.ones(len(rows), bool), form.ids, name)


def without_text_loss(item: Example) -> Example:
    """The same example with no text targets (stage 1: the text branch is frozen)."""
    return _drop(item, np.array([[True, False]]))


def without_audio_loss(item: Example) -> Example:
    """The same example with no audio targets."""
    return _drop(item, np.array([[False, True]]))


def without_sosp_loss(item: Example, ids: GridIds) -> Example:
    """The same example where starting to speak is never learnt."""
    return _drop(item, np.stack([item.labels[:, 0] == ids.sosp, np.zeros(len(item), bool)], 1))


def _drop(item: Example, where: np.ndarray) -> Example:
    labels = np.where(where, np.int32(IGNORE), item.labels)
    return dataclasses.replace(item, labels=labels)


def _opens_speech(rows: np.ndarray, ids: GridIds) -> np.ndarray:
    return rows[:, 0] == ids.sosp
