"""Decoder batches whose rows begin with somebody's voice: another recording of the same speaker."""

import numpy as np

from mossjax.data.clips import fit
from mossjax.data.pipeline import Batch
from mossjax.data.segments import by_speaker
from mossjax.data.speech import DecoderBatches, named

SHORTEST = 5  # codes of a prompt that is cut, 0.4 s


class PromptedBatches(DecoderBatches):
    """As `DecoderBatches`, codes and audio with a prompt before them, and `prompt_lengths` (b,)
    int32 codes of it, 0 where a row has none. A prompt is the beginning of another recording of the
    row's speaker, of random length, undisturbed; where that is to be skipped, there is none."""

    def __init__(self, *args, prompts: float, longest: int, **options):
        """Args:
          prompts: share of rows that have one.
          longest: codes of a prompt.

        Raises:
          InputError: a recording says no speaker, or a speaker has one recording alone.
        """
        super().__init__(*args, **options)
        self._prompts, self._longest = prompts, longest
        self._of = by_speaker(self._clips.recordings)
        self._skip = frozenset(named(self._clips, options.get('skip', ())))

    def _row(self, i: int, width: int, rng: np.random.Generator) -> Batch:
        row = super()._row(i, width, rng)
        codes, audio = self._prompt(i, rng)
        n = len(codes)
        return {
            'codes': fit(np.concatenate([codes, row['codes']]), width + self._longest),
            'code_lengths': np.int32(n + row['code_lengths']),
            'audio': fit(
                np.concatenate([audio, row['audio']]), (width + self._longest) * self._unit
            ),
            'prompt_lengths': np.int32(n),
        }

    def _prompt(self, i: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(codes (n,), audio (1920 n,)), empty where this row has none."""
        none = np.zeros(0, np.int32), np.zeros(0, np.float32)
        if rng.random() >= self._prompts:
            return none
        others = self._of[self._clips.recordings[i].speaker]
        j = int(rng.choice(others[others != i]))
        if j in self._skip:
            return none
        codes = self._versions[j][0].codes
        most = min(len(codes), self._longest)
        n = int(rng.integers(min(SHORTEST, most), most + 1))
        return codes[:n], fit(self._clips.read(j), n * self._unit)

