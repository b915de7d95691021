"""The generation state machine: which channel speaks, what is forbidden, when a reply ends.

All functions are pure and vectorised over the batch; a step k counts from 1:

    mode = rules.switch(mode, row, ids)                    # read the row before it
    text = rules.constrain_text(text, mode, ...)           # forbid ids
    audio = constrain_audio(audio, k, ...)
    row = rules.write(drawn, mode, k, max_new_tokens, ids)
    reason = rules.finish(reason, row, ids)

Two sets of rules share this order. UPSTREAM reproduces the released generation code with its
quirks, for comparisons; CLEAN is what one would want. Source: upstream generation code.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.errors import InputError
from mossjax.models.lm.grid import GridIds

TEXT, SPEECH = 0, 1  # modes
RUNNING, STOP, LENGTH, BATCH = 0, 1, 2, 3  # reasons; BATCH: upstream stopped with sample 0
REASONS = ('running', 'stop', 'length', 'batch')


@dataclasses.dataclass(frozen=True)
class Rules:
    """One behaviour of the machine. Rows are int32 (b, 2), modes and reasons int32 (b,).

    Attributes:
      start: (last prompt rows, ids) -> mode before the first switch.
      switch: (mode, last row, ids) -> mode of the next row.
      both: whether the draws of both channels get into every row; else one follows the mode.
      constrain_text: (scores (b, v), mode, speech_allowed (b,), ids) -> scores with forbidden ids
        at -inf.
      enders: (ids) -> text ids held back until min_new_tokens rows are made.
      write: (drawn (b, 2), mode, k, max_new, ids) -> the row to append.
      finish: (reason, row, ids) -> reason after this row (LENGTH is set by the loop).
      counts_prompt: whether the repetition penalty counts what was said before the reply.
      remember: (row, mode, ids) -> bool (b, 2): ids of a generated row that it counts.
      decode: (grid (n, 2), ids, tokenizer) -> (text, codes int32) of a finished reply.
    """

    start: Callable
    switch: Callable
    both: bool
    constrain_text: Callable
    enders: Callable
    write: Callable
    finish: Callable
    counts_prompt: bool
    remember: Callable
    decode: Callable


# --- shared ---------------------------------------------------------------------------------


def constrain_audio(audio: jax.Array, k, min_new, ids: GridIds) -> jax.Array:
    """Scores (b, va): unused ids above eosp never; eosp not in the first min_new - 1 steps.

    Args:
      k, min_new: scalars, or (b,) of each row.
    """
    column = jnp.arange(audio.shape[-1])
    early = jnp.expand_dims(jnp.asarray(k) < min_new, -1)
    forbidden = (column > ids.eosp) | ((column == ids.eosp) & early)
    return jnp.where(forbidden, -jnp.inf, audio)


def channels(rules: Rules, mode: jax.Array) -> jax.Array:
    """bool (b, 2): the channels whose draw gets into a row of that mode (b,)."""
    own = jnp.stack([mode == TEXT, mode == SPEECH], axis=-1)
    return own | rules.both


def is_stop(text_ids: jax.Array, ids: GridIds) -> jax.Array:
    return jnp.isin(text_ids, jnp.array(ids.stops))


def trim_codes(audio: np.ndarray, ids: GridIds) -> np.ndarray:
    """Audio ids before the first eosp; all of them if there is none."""
    ends = np.flatnonzero(audio == ids.eosp)
    return audio[: ends[0]] if ends.size else audio


# --- clean ----------------------------------------------------------------------------------


def _clean_start(row, ids):
    return jnp.where(row[:, 0] == ids.speech, SPEECH, TEXT)


def _clean_switch(mode, row, ids):
    """The audio channel means something only if the row before was a speech row."""
    opened = row[:, 0] == ids.sosp
    open_still = row[:, 1] != ids.eosp
    return jnp.where(mode == TEXT, opened, open_still).astype(jnp.int32)


def _clean_constrain_text(text, mode, speech_allowed, ids):
    """Text rows never carry the modality pad, nor sosp where only text is wanted."""
    column = jnp.arange(text.shape[-1])
    forbidden = (column == ids.speech) & (mode == TEXT)[:, None]
    forbidden |= (column == ids.sosp) & ~speech_allowed[:, None]
    return jnp.where(forbidden, -jnp.inf, text)


def _clean_write(drawn, mode, k, max_new, ids):
    """Filler beside text; at the cap an open speech segment is closed."""
    audio = jnp.where(k >= max_new, ids.eosp, drawn[:, 1])
    speech_row = jnp.stack([jnp.full_like(audio, ids.speech), audio], axis=1)
    text_row = jnp.stack([drawn[:, 0], jnp.full_like(audio, ids.filler)], axis=1)
    return jnp.where((mode == SPEECH)[:, None], speech_row, text_row)


def _clean_finish(reason, row, ids):
    return jnp.where((reason == RUNNING) & is_stop(row[:, 0], ids), STOP, reason)


def _clean_remember(row, mode, ids):
    """Words and codes only, no control ids and no filler."""
    text, audio = row[:, 0], row[:, 1]
    word = (mode == TEXT) & (text != ids.sosp) & ~is_stop(text, ids)
    code = (mode == SPEECH) & (audio != ids.eosp)
    return jnp.stack([word, code], axis=1)


def _clean_decode(grid, ids, tokenizer):
    grid = np.asarray(grid)
    if len(grid) and grid[-1, 0] in ids.stops:
        grid = grid[:-1]
    speech = grid[:, 0] == ids.speech
    words = grid[~speech & (grid[:, 0] != ids.sosp), 0]
    first = int(np.argmax(speech)) if speech.any() else len(grid)
    codes = trim_codes(grid[first:][speech[first:], 1], ids)
    wrong = codes[(codes < 0) | (codes >= ids.eosp)]
    if wrong.size:
        raise InputError(f'the reply holds code {wrong[0]}, outside [0, {ids.eosp})')
    return tokenizer.decode_complete(words), codes.astype(np.int32)


CLEAN = Rules(
    start=_clean_start,
    switch=_clean_switch,
    both=False,
    constrain_text=_clean_constrain_text,
    enders=lambda ids: ids.stops,
    write=_clean_write,
    finish=_clean_finish,
    counts_prompt=False,
    remember=_clean_remember,
    decode=_clean_decode,
)


# --- upstream -------------------------------------------------------------------------------


def _upstream_start(row, ids):
    """A trailing speech row with code 512 (the filler) starts in text mode: the last test wins."""
    mode = jnp.where(row[:, 0] == ids.speech, SPEECH, TEXT)
    return jnp.where(row[:, 1] == ids.filler, TEXT, mode)


def _upstream_switch(mode, row, ids):
    """Two tests in sequence, the second on whatever the audio channel holds."""
    mode = jnp.where((mode == TEXT) & (row[:, 0] == ids.sosp), SPEECH, mode)
    return jnp.where((mode == SPEECH) & (row[:, 1] == ids.eosp), TEXT, mode)


def _upstream_constrain_text(text, mode, speech_allowed, ids):
    del mode, speech_allowed, ids
    return text


def _upstream_write(drawn, mode, k, max_new, ids):
    """The audio draw stays on text rows, though nothing reads it."""
    del k, max_new
    return drawn.at[:, 0].set(jnp.where(mode == SPEECH, ids.speech, drawn[:, 0]))


def _upstream_finish(reason, row, ids):
    """The criteria look at sample 0 only; the whole batch ends with it."""
    stop = is_stop(row[:, 0], ids)
    return jnp.where(stop[0], jnp.where(stop, STOP, BATCH), reason)


def _upstream_remember(row, mode, ids):
    del mode, ids
    return jnp.ones(row.shape, bool)


def _upstream_decode(grid, ids, tokenizer):
    """The last row goes, whatever it is; the placeholder tokens become punctuation."""
    grid = np.asarray(grid)[:-1]
    text = tokenizer.decode(grid[:, 0]).replace('<|empty|>', '.').replace('<|end_empty|>', ':')
    return text, trim_codes(grid[:, 1], ids).astype(np.int32)


UPSTREAM = Rules(
    start=_upstream_start,
    switch=_upstream_switch,
    both=True,  # the audio draw beside text stays in the grid
    constrain_text=_upstream_constrain_text,
    enders=lambda ids: (ids.eos,),
    write=_upstream_write,
    finish=_upstream_finish,
    counts_prompt=True,
    remember=_upstream_remember,
    decode=_upstream_decode,
)
