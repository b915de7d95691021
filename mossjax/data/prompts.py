"""Decoder batches whose rows are told whose voice it is: by another recording of the speaker."""

from collections.abc import Mapping

import numpy as np

from mossjax.data.clips import fit
from mossjax.data.pipeline import Batch
from mossjax.data.segments import by_speaker
from mossjax.data.speech import DecoderBatches, named

SHORTEST = 5  # codes of a prompt that is cut, 0.4 s
NOBODY = 0.5  # of the rows without a prompt have no vector either


class PromptedBatches(DecoderBatches):
    """As `DecoderBatches`, codes and audio with a prompt before them, and `prompt_lengths` (b,)
    int32 codes of it, 0 where a row has none. A prompt is the beginning of another recording of the
    row's speaker, of random length, undisturbed; where that is to be skipped, there is none.

    With speaker vectors also `xvector` float32 (b, x): the prompt's, as where voices are used; of
    half of the rows without a prompt another recording's of the speaker, of the others zero."""

    def __init__(
        self, *args, prompts: float, longest: int,
        vectors: Mapping[str, np.ndarray] | None = None, **options,
    ):  # fmt: skip
        """Args:
          prompts: share of rows that have one.
          longest: codes of a prompt.
          vectors: of recordings, by path (`data.vectors`); those that it lacks have zeros.

        Raises:
          InputError: a recording says no speaker, or a speaker has one recording alone.
        """
        super().__init__(*args, **options)
        self._prompts, self._longest = prompts, longest
        self._of = by_speaker(self._clips.recordings)
        self._skip = frozenset(named(self._clips, options.get('skip', ())))
        self._vectors = None
        if vectors:
            nobody = np.zeros_like(next(iter(vectors.values())))
            self._vectors = np.stack([vectors.get(r.audio, nobody) for r in self._clips.recordings])

    def _row(self, i: int, width: int, rng: np.random.Generator) -> Batch:
        row = super()._row(i, width, rng)
        other = self._other(i, rng) if rng.random() < self._prompts else None
        codes, audio = self._prompt(other, rng)
        n = len(codes)
        told = {} if self._vectors is None else {'xvector': self._vector(i, other, rng)}
        return told | {
            'codes': fit(np.concatenate([codes, row['codes']]), width + self._longest),
            'code_lengths': np.int32(n + row['code_lengths']),
            'audio': fit(
                np.concatenate([audio, row['audio']]), (width + self._longest) * self._unit
            ),
            'prompt_lengths': np.int32(n),
        }

    def _other(self, i: int, rng: np.random.Generator) -> int | None:
        """Another recording of the speaker; None where the one that is drawn is to be skipped."""
        others = self._of[self._clips.recordings[i].speaker]
        j = int(rng.choice(others[others != i]))
        return None if j in self._skip else j

    def _prompt(self, j: int | None, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(codes (n,), audio (1920 n,)) of the beginning of recording j, empty of none."""
        if j is None:
            return np.zeros(0, np.int32), np.zeros(0, np.float32)
        codes = self._versions[j][0].codes
        most = min(len(codes), self._longest)
        n = int(rng.integers(min(SHORTEST, most), most + 1))
        return codes[:n], fit(self._clips.read(j), n * self._unit)

    def _vector(self, i: int, prompt: int | None, rng: np.random.Generator) -> np.ndarray:
        """(x,) of the recording that the prompt of row i is of; see the class where it has none."""
        if prompt is None and rng.random() >= NOBODY:
            prompt = self._other(i, rng)
        return np.zeros_like(self._vectors[0]) if prompt is None else self._vectors[prompt]
