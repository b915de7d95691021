"""The two-channel token grid: rows of (text id, audio id), int32, channels last.

A row carries either text (text id, filler) or speech (modality pad, audio id); which one it is
stands in the text channel alone, because the filler is also an ordinary codec code. Segments are
built apart and concatenated along time, so text never merges across a border.
Source: MOSS-Speech, upstream processor (arXiv 2510.00499, section 3).
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from mossjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class GridIds:
    """Every id with a meaning of its own; read from a checkpoint, hashable, so static under jit.

    Attributes:
      vocab, audio_vocab: widths of the two heads.
      sosp: text id of the row that opens speech.
      speech: text id (modality pad) of every row that carries an audio id.
      filler: audio id written on text rows.
      eosp: audio id that closes speech; the codec codes are [0, eosp).
      pad: text id of padding rows.
      eos: the text id the model's config names as end of sequence.
      stops: text ids that end a reply.
    """

    vocab: int
    audio_vocab: int
    sosp: int
    speech: int
    filler: int
    eosp: int
    pad: int
    eos: int
    stops: tuple[int, ...]

    def __post_init__(self):
        text = {'sosp': self.sosp, 'speech': self.speech, 'pad': self.pad, 'eos': self.eos}
        text |= {f'stops[{i}]': stop for i, stop in enumerate(self.stops)}
        audio = {'filler': self.filler, 'eosp': self.eosp}
        for names, size in ((text, self.vocab), (audio, self.audio_vocab)):
            for name, value in names.items():
                if not 0 <= value < size:
                    raise InputError(
                        f'special id {name} = {value} is outside the vocabulary of {size}; '
                        'check config.json and tokenizer.json of the checkpoint'
                    )
        if len({self.sosp, self.speech, *self.stops}) != 2 + len(set(self.stops)):
            raise InputError(
                f'sosp ({self.sosp}), modality pad ({self.speech}) and stop ids {self.stops} '
                'must all differ; check config.json of the checkpoint'
            )

    @classmethod
    def of(cls, config, tokenizer) -> 'GridIds':
        """From an LMConfig and a text tokenizer (im_end, endoftext, pad)."""
        return cls(
            vocab=config.vocab_size,
            audio_vocab=config.audio_vocab_size,
            sosp=config.sosp_token_id,
            speech=config.modality_pad_token_id,
            filler=config.audio_pad_token_id,
            eosp=config.eosp_token_id,
            pad=tokenizer.pad,
            eos=config.eos_token_id,
            stops=tuple(sorted({config.eos_token_id, tokenizer.im_end, tokenizer.endoftext})),
        )


def text_rows(text_ids: Sequence[int], ids: GridIds) -> np.ndarray:
    """(n,) text ids -> (n, 2) rows. Raises InputError for an id outside the text vocabulary."""
    text = np.asarray(text_ids, np.int64).reshape(-1)
    wrong = text[(text < 0) | (text >= ids.vocab)]
    if wrong.size:
        raise InputError(
            f'text id {wrong[0]} is outside the vocabulary of {ids.vocab}; '
            'the tokenizer does not belong to this model'
        )
    return np.stack([text, np.full_like(text, ids.filler)], axis=1).astype(np.int32)


def check_codes(codes: Sequence[int], ids: GridIds, name: str = 'audio') -> np.ndarray:
    """Codec codes as int32 (n,), n > 0, all in [0, eosp); `name` stands in the InputError."""
    array = np.asarray(codes)
    if array.size == 0:
        raise InputError(f'{name} has no codes; give at least one code of speech')
    if array.ndim != 1 or array.dtype.kind not in 'iu':
        raise InputError(
            f'{name} must be a flat list of integer codes, got {array.dtype} of shape {array.shape}'
        )
    wrong = array[(array < 0) | (array >= ids.eosp)]
    if wrong.size:
        raise InputError(
            f'{name} holds code {wrong[0]}, outside [0, {ids.eosp}); '
            'tokenize it with the codec of this model'
        )
    return array.astype(np.int32)


def speech_rows(codes: Sequence[int], ids: GridIds, name: str = 'audio') -> np.ndarray:
    """(n,) codes -> (n + 2, 2): the opening row, one row a code, the closing row."""
    codes = check_codes(codes, ids, name)
    rows = np.full((len(codes) + 2, 2), ids.speech, np.int32)
    rows[0] = ids.sosp, ids.filler
    rows[1:-1, 1] = codes
    rows[-1, 1] = ids.eosp
    return rows


def concatenate(segments: Sequence[np.ndarray]) -> np.ndarray:
    """Segments (n_i, 2) -> one grid (sum n_i, 2)."""
    return np.concatenate([np.zeros((0, 2), np.int32), *segments])


def collate(
    grids: Sequence[np.ndarray], ids: GridIds, length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Left-pads grids (t_i, 2) to the longest one, or to `length`.

    Returns:
      tokens int32 (b, t, 2) with (pad, filler) before each grid, valid bool (b, t).
    """
    longest = max(map(len, grids))
    length = longest if length is None else length
    if length < longest:
        raise InputError(f'a grid of {longest} rows does not fit into {length}')
    tokens = np.empty((len(grids), length, 2), np.int32)
    tokens[:] = ids.pad, ids.filler
    valid = np.zeros((len(grids), length), bool)
    for i, grid in enumerate(grids):
        tokens[i, length - len(grid) :] = grid
        valid[i, length - len(grid) :] = True
    return tokens, valid
