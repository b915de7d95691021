"""Recipes: what one training example is made of, for the stages of the paper.

    stage 1 and 2   interleaved, asr, tts, dialogue(supervise=everything), text_only
    SFT             dialogue(supervise=replies) in four modes: speech or text in, speech or text out

A recipe lays out rows and says which of them are targets; `example` turns that into labels. A row
is a target of one channel only: text rows (start of speech among them) of the text head, speech
rows (codes and end of speech) of the audio head. So the row after end of speech is predicted by
the text head from the end-of-speech row, and the first code from the start-of-speech row.

Start of speech stands in the prompt when a spoken reply is wanted, so in a dialogue it is never a
target. Masks compose: `without_text_loss(interleaved(...))`.
Source: arXiv 2510.00499, pre-training and SFT sections.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from mossjax.data.manifest import Dialogue, Labels
from mossjax.data.rows import IGNORE, Example
from mossjax.errors import InputError
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.dialogue import CLEAN, Style, Turn, turn_segments
from mossjax.models.lm.grid import GridIds, concatenate, speech_rows, text_rows
from mossjax.models.lm.text import TextTokenizer

CODES_PER_SECOND = 12.5
# Encodes differently under most other tokenizers.
PROBE = 'what is three plus four? the answer is seven. 12 ABC'


@dataclasses.dataclass(frozen=True)
class Format:
    """What every recipe needs to write rows.

    Attributes:
      style: system prompts and text encoding of dialogues.
      asr_prompt, tts_prompt: system turns that ask to write down or to read aloud.
    """

    tokenizer: TextTokenizer
    ids: GridIds
    style: Style = CLEAN
    asr_prompt: str = 'You are a helpful assistant. Write down what the user says.'
    tts_prompt: str = 'You are a helpful voice assistant. Say aloud what the user writes.'

    @property
    def pad(self) -> tuple[int, int]:
        """Text and audio id for the padding of packed rows."""
        return self.ids.pad, self.ids.filler

    def facts(self) -> dict[str, Any]:
        """What decides the ids in rows, as JSON; goes into a data set's config as 'format'."""
        return {
            'ids': {**dataclasses.asdict(self.ids), 'stops': list(self.ids.stops)},
            'prompts': dataclasses.asdict(self.style.prompts),
            'asr_prompt': self.asr_prompt,
            'tts_prompt': self.tts_prompt,
            'probe': self.tokenizer.encode_plain(PROBE),
        }


def check_rows(
    metadata: Mapping[str, Any], name: str, config: LMConfig, tokenizer: TextTokenizer | None
) -> None:
    """Refuses rows whose ids mean something else to a model; rows that do not say so pass.

    Args:
      metadata: of a row data set, with `Format.facts` as 'format' in its config.
      tokenizer: of the model, if it is at hand.

    Raises:
      InputError: they were written for another model or tokenizer.
    """
    found = metadata['config'].get('format')
    if found is None:
        return
    mine = {
        'sosp': config.sosp_token_id, 'speech': config.modality_pad_token_id,
        'filler': config.audio_pad_token_id, 'eosp': config.eosp_token_id,
    }  # fmt: skip
    ids = found['ids']
    other = [f'{key} is {ids[key]}, here {v}' for key, v in mine.items() if ids[key] != v]
    if tokenizer and found['probe'] != tokenizer.encode_plain(PROBE):
        other.append('their text tokenizer is another')
    if other:
        raise InputError(
            f'rows {name} were written for another model ({"; ".join(other)}); write them anew '
            'with the config.json and tokenizer.json of this one'
        )


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
    turns = [Turn('system', form.asr_prompt), Turn('user', codes), Turn('assistant', text)]
    return dialogue(turns, form, 'reply', name)


def tts(text: str, codes: Sequence[int], form: Format, name: str = '') -> Example:
    """Text in, the same words spoken out; the speech is supervised."""
    turns = [Turn('system', form.tts_prompt), Turn('user', text), Turn('assistant', codes)]
    return dialogue(turns, form, 'reply', name)


def text_only(text: str, form: Format, name: str = '') -> Example:
    """A document and <|endoftext|>, all supervised."""
    ids = [*form.tokenizer.encode_plain(text), form.tokenizer.endoftext]
    rows = text_rows(ids, form.ids)
    return example(rows, np.ones(len(rows), bool), form.ids, name)


Chunk = tuple[str, np.ndarray]  # the words of a stretch of speech and its codes


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


def chunks_at_words(
    words: Labels,
    codes: np.ndarray,
    rng: np.random.Generator,
    seconds: tuple[float, float] = (3.0, 6.0),
    offset: float = 0.0,
) -> list[Chunk]:
    """Cuts a recording at word borders into chunks for `interleaved`.

    Each chunk's length is drawn from `seconds` and ends at the first word border at or after it;
    the last may be shorter. The silence around words goes with its neighbours.

    Args:
      words: ((word, end in seconds), ...).
      codes: (n,) of the whole recording, 12.5 a second.
      offset: seconds of silence the codes have before the recording starts.
    """
    chunks: list[Chunk] = []
    said: list[str] = []
    start = 0
    wanted = rng.uniform(*seconds)
    begin = 0.0
    for i, (word, end) in enumerate(words):
        said.append(word)
        border = round((end + offset) * CODES_PER_SECOND)
        border = len(codes) if i == len(words) - 1 else min(border, len(codes) - 1)
        last = i == len(words) - 1
        if border > start and (last or end - begin >= wanted):
            chunks.append((' '.join(said), np.asarray(codes[start:border])))
            said, start, begin, wanted = [], border, end, rng.uniform(*seconds)
    return chunks


def corrupt_codes(
    codes: np.ndarray, rng: np.random.Generator, fraction: float, size: int
) -> np.ndarray:
    """Replaces a fraction of codes (n,) by uniform draws from [0, size): noise for inputs."""
    codes = np.array(codes, np.int32)
    wrong = rng.random(len(codes)) < fraction
    codes[wrong] = rng.integers(0, size, int(wrong.sum()))
    return codes


def turns_of(entry: Dialogue, codes_of: Callable[[str], np.ndarray]) -> list[Turn]:
    """Manifest turns -> dialogue turns; `codes_of(audio path)` gives the speech tokens."""

    def content(turn):
        if turn.text is not None:
            return turn.text
        return codes_of(turn.audio) if turn.codes is None else np.asarray(turn.codes, np.int32)

    return [Turn(turn.role, content(turn)) for turn in entry.turns]


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
