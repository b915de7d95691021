"""The dialogue format: turns of text or speech -> one prompt grid.

A turn is `<|im_start|>role newline`, its content, `<|im_end|> newline`; after the last one the
assistant prefix opens the reply, with start-of-speech in it if the reply is to be spoken. The two
styles differ in where a missing system turn goes and in whether text may spell control tokens.
"""

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np

from mossjax.errors import InputError
from mossjax.models.lm.grid import GridIds, concatenate, speech_rows, text_rows
from mossjax.models.lm.text import TextTokenizer

ROLES = ('system', 'user', 'assistant')
REPLIES = ('audio', 'text')


@dataclasses.dataclass(frozen=True, eq=False)
class Turn:
    """One turn: a role and either text or codec codes (n,)."""

    role: str
    content: str | Sequence[int] | np.ndarray


@dataclasses.dataclass(frozen=True)
class SystemPrompts:
    """System turns that say what is wanted.

    Attributes:
      audio, text: answer in speech, in writing.
      asr, tts: write down what is said, say what is written (ours; upstream has none for these).
    """

    audio: str
    text: str
    asr: str = 'You are a helpful assistant. Write down what the user says.'
    tts: str = 'You are a helpful voice assistant. Say aloud what the user writes.'

    @classmethod
    def of(cls, generation_config: dict) -> 'SystemPrompts':
        """A checkpoint's own (`system_prompts` in generation_config.json), or upstream's.

        Raises InputError if the entry is there and is not an object of strings, `audio` and `text`
        at least.
        """
        own = generation_config.get('system_prompts')
        if own is None:
            return INTERFACE_PROMPTS
        known = [field.name for field in dataclasses.fields(cls)]
        given = {key: own[key] for key in known if key in own} if isinstance(own, dict) else {}
        if not set(REPLIES) <= set(given) or not all(isinstance(x, str) for x in given.values()):
            raise InputError(
                "system_prompts in generation_config.json must be {'audio': ..., 'text': ...}, "
                "with 'asr' and 'tts' where the model knows these tasks, all of them strings"
            )
        return cls(**given)


# What upstream's demo sends, and so what the released model was mostly run with.
INTERFACE_PROMPTS = SystemPrompts(
    audio=(
        "You are a helpful voice assistant. Answer the user's questions with spoken responses."
    ),
    text="You are a helpful assistant. Answer the user's questions with text.",
)
# What upstream's processor adds by itself when no system turn leads.
PROCESSOR_PROMPTS = SystemPrompts(
    audio='You are a helpful assistant. Respond with spoken outputs.',
    text='You are a helpful assistant. Respond with text outputs.',
)


@dataclasses.dataclass(frozen=True)
class Style:
    """How a prompt is built.

    Attributes:
      prompts: the system turn to add when the dialogue does not start with one.
      place: (turns, system turn) -> turns.
      encode: (tokenizer, text) -> ids, for the content of a turn.
    """

    prompts: SystemPrompts
    place: Callable[[Sequence[Turn], Turn], list[Turn]]
    encode: Callable[[TextTokenizer, str], list[int]]


def system_first(turns: Sequence[Turn], system: Turn) -> list[Turn]:
    return [system, *turns]


def system_last(turns: Sequence[Turn], system: Turn) -> list[Turn]:
    """Upstream appends its default after all turns, just before the reply."""
    return [*turns, system]


CLEAN = Style(INTERFACE_PROMPTS, system_first, lambda tokenizer, text: tokenizer.encode_plain(text))
UPSTREAM = Style(PROCESSOR_PROMPTS, system_last, lambda tokenizer, text: tokenizer.encode(text))


def turn_segments(
    turn: Turn, tokenizer: TextTokenizer, ids: GridIds, style: Style = CLEAN
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(opening, content, closing) rows of one turn."""
    if turn.role not in ROLES:
        raise InputError(f'unknown role {turn.role!r}; a turn is one of {", ".join(ROLES)}')
    if isinstance(turn.content, str):
        content = text_rows(style.encode(tokenizer, turn.content), ids)
    else:
        content = speech_rows(turn.content, ids, f'the {turn.role} turn')
    closing = text_rows([tokenizer.im_end, *tokenizer.encode_plain('\n')], ids)
    return _opening(turn.role, tokenizer, ids), content, closing


def reply_prefix(reply: str, tokenizer: TextTokenizer, ids: GridIds) -> np.ndarray:
    """Rows that open the assistant's reply, 'audio' or 'text'."""
    if reply not in REPLIES:
        raise InputError(f'unknown kind of reply {reply!r}; choose one of {", ".join(REPLIES)}')
    opening = _opening('assistant', tokenizer, ids)
    speech = {'audio': [ids.sosp], 'text': []}[reply]
    return concatenate([opening, text_rows(speech, ids)])


def build_prompt(
    turns: Sequence[Turn],
    reply: str,
    tokenizer: TextTokenizer,
    ids: GridIds,
    style: Style = CLEAN,
) -> np.ndarray:
    """The prompt grid int32 (t, 2) of a dialogue.

    Args:
      turns: the dialogue so far; if it starts with a system turn, none is added.
      reply: 'audio' or 'text'.
      style: CLEAN, UPSTREAM, or a variant with other system prompts.

    Raises:
      InputError: no turns, unknown role or reply, empty audio, codes outside the codec's range.
    """
    if not turns:
        raise InputError('the dialogue has no turns; give at least one user turn')
    prefix = reply_prefix(reply, tokenizer, ids)
    if turns[0].role != 'system':
        turns = style.place(turns, Turn('system', getattr(style.prompts, reply)))
    segments = [rows for turn in turns for rows in turn_segments(turn, tokenizer, ids, style)]
    return concatenate([*segments, prefix])


def _opening(role: str, tokenizer: TextTokenizer, ids: GridIds) -> np.ndarray:
    return text_rows([tokenizer.im_start, *tokenizer.encode_plain(f'{role}\n')], ids)
