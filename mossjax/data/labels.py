"""Targets for the tokenizer's transcription task: an inventory of labels, frames, sequences."""

from collections.abc import Iterable
import dataclasses
import json
import os
from pathlib import Path

import numpy as np

from mossjax.data.manifest import Labels, Recording
from mossjax.errors import InputError
from mossjax.files import read_json, replacing

NONE = -1  # frame label where nothing is known
SILENCE = ('pau', 'sil')  # labels that are frames but not sounds to transcribe


@dataclasses.dataclass(frozen=True)
class Inventory:
    """Label <-> id: the id of labels[i] is i. The CTC blank has none; it is the head's affair.

    Attributes:
      labels: sorted.
    """

    labels: tuple[str, ...]

    def __post_init__(self):
        object.__setattr__(self, '_ids', {label: i for i, label in enumerate(self.labels)})

    def __len__(self) -> int:
        return len(self.labels)

    def id(self, label: str) -> int:
        """Raises InputError for a label that was not in the manifest the inventory came from."""
        if label not in self._ids:
            raise InputError(
                f'label {label!r} is not among the {len(self.labels)} of the inventory; build it '
                'from a manifest that has every label.'
            )
        return self._ids[label]

    @classmethod
    def of(cls, recordings: Iterable[Recording]) -> 'Inventory':
        """Every label of `times`, and every character of texts that have no times."""
        found = {label for r in recordings for label in _all_labels(r)}
        if not found:
            raise InputError('no recording has "times" or "text"; the tokenizer needs targets.')
        return cls(tuple(sorted(found)))

    @classmethod
    def open(cls, path: str | os.PathLike) -> 'Inventory':
        """Raises InputError for a file that is missing or that `save` did not write."""
        labels = read_json(path).get('labels')
        texts = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
        if not texts or not labels or len(set(labels)) < len(labels):
            raise InputError(
                f'{path}: "labels" is no list of different labels; build the inventory anew.'
            )
        return cls(tuple(labels))

    def save(self, path: str | os.PathLike) -> None:
        text = json.dumps({'labels': self.labels}, ensure_ascii=False)
        with replacing(path) as temporary:
            temporary.write_text(text, encoding='utf-8')

    def sequence(self, recording: Recording) -> np.ndarray:
        """Targets int32 (n,): phones of `times` without silence, or else characters of `text`."""
        labels = _all_labels(recording)
        return np.array([self.id(x) for x in labels if x not in SILENCE], np.int32)

    def frames(self, times: Labels, frames: int, rate: float) -> np.ndarray:
        """Frame labels int32 (frames,), NONE where no label reaches.

        A frame has the label in which its middle, (j + 0.5) / rate seconds, lies; a label covers
        (end of the one before, its own end].

        Args:
          rate: frames a second.
        """
        if not times:
            return np.full(frames, NONE, np.int32)
        ids = np.array([self.id(label) for label, _ in times] + [NONE], np.int32)
        ends = np.array([end for _, end in times])
        middle = (np.arange(frames) + 0.5) / rate
        # Rounded: 0.07 + 0.02 and 0.09 are different floats, and borders fall on such numbers.
        which = np.searchsorted(np.round(ends, 6), np.round(middle, 6), side='left')
        return ids[which]


class Transcripts:
    """Texts of recordings as ids of a text tokenizer: targets of the text decoder."""

    END = '<|endoftext|>'

    def __init__(self, directory: str | os.PathLike, size: int, longest: int):
        """Args:
          directory: holds the tokenizer.json, e.g. Whisper's.
          size: ids that the decoder knows. longest: its positions.

        Raises:
          InputError: there is no such tokenizer, or it has more ids than the decoder.
        """
        import tokenizers

        path = Path(directory) / 'tokenizer.json'
        spec = json.dumps(read_json(path))
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(spec)
        except Exception as error:  # the library raises nothing narrower
            raise InputError(f'{path} is no tokenizer ({error}); copy it anew') from error
        self._end = self._tokenizer.token_to_id(self.END)
        found = self._tokenizer.get_vocab_size(with_added_tokens=True)
        if self._end is None or found > size:
            raise InputError(
                f'{path} has {found} ids and {"an" if self._end is not None else "no"} end token '
                f'{self.END}; the text decoder knows {size} ids and needs that token. Give the '
                'tokenizer it was made for, or set config.model.vocab'
            )
        self._longest = longest

    def sequence(self, recording: Recording) -> np.ndarray:
        """Ids int32 (n,) of `text`, the end token last; none where there is no text.

        Raises:
          InputError: it is longer than the decoder.
        """
        if not recording.text:
            return np.zeros(0, np.int32)
        ids = self._tokenizer.encode(recording.text, add_special_tokens=False).ids
        if len(ids) >= self._longest:
            raise InputError(
                f'{recording.audio}: its text has {len(ids)} tokens, the text decoder takes '
                f'{self._longest - 1}; cut the recording or leave it out'
            )
        return np.array([*ids, self._end], np.int32)


def _all_labels(recording: Recording) -> list[str]:
    return [label for label, _ in recording.times] or list(recording.text)
