"""Cuts of one length out of recordings, for vocoders and speaker encoders, by step.

Row i of step s is recording number s * rows + i of an endless sequence in which every epoch is
shuffled anew; where the cut begins is drawn. See `pipeline.Batches`.
"""

from collections.abc import Mapping, Sequence
import functools

import numpy as np

from mossjax.data.clips import Clips, fit
from mossjax.data.pipeline import Batch
from mossjax.errors import InputError
from mossjax.values import listed

RATE, HOP = 24_000, 480  # Hz; samples of a mel frame
MARGIN = 2  # frames on either side that a mel's window reaches into
UNKNOWN = -1.0  # f0 of a recording without a measured one
VOICE_RATE = 16_000  # Hz, of a speaker encoder


class _Cuts:
    """Which recordings make up a batch."""

    def __init__(self, clips: Clips, *, rate: int, rows: int, seed: int, skip: Sequence[str]):
        if clips.rate != rate:
            raise InputError(f'clips are at {clips.rate} Hz; load them at {rate} Hz for this')
        self._clips, self._rows, self._seed = clips, rows, seed
        left = [i for i, r in enumerate(clips.recordings) if r.audio not in set(skip)]
        if not left:
            raise InputError('all recordings are to be skipped; name fewer in data.skip_rows')
        self._left = np.array(left)
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)

    def size(self, step: int) -> int:
        """See `pipeline.Batches`."""
        del step
        return self._rows

    def names(self, step: int) -> list[str]:
        """See `pipeline.Batches`."""
        return [self._clips.recordings[self._which(step, i)].audio for i in range(self._rows)]

    def batch(self, step: int, rows: Sequence[int] | None = None) -> Batch:
        """See `pipeline.Batches`."""
        found = [
            self._row(self._which(step, i), np.random.default_rng([self._seed, step, int(i), 1]))
            for i in (range(self._rows) if rows is None else rows)
        ]
        return {key: np.stack([row[key] for row in found]) for key in found[0]}

    def _which(self, step: int, row: int) -> int:
        epoch, at = divmod(step * self._rows + int(row), len(self._left))
        return int(self._left[self._order(epoch)[at]])

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._left))


class SegmentBatches(_Cuts):
    """Fields: `audio` float32 (b, 480 (frames + 2 MARGIN)) at 24 kHz, the cut with a margin on
    either side, silent where the recording is not; `f0` float32 (b, frames) Hz, 0 unvoiced, -1 not
    known. Recordings that are shorter than a cut stand at a random place in silence."""

    def __init__(
        self, clips: Clips, pitches: Mapping[str, np.ndarray], *, frames: int, rows: int, seed: int,
        skip: Sequence[str] = (),
    ):  # fmt: skip
        """Args:
          clips: at 24 kHz.
          pitches: see `pitch.read`.
          frames: of a cut, 20 ms each. rows: of a global batch.
          skip: names of recordings (`audio`) that are left out.

        Raises:
          InputError: clips of another rate, or nothing is left.
        """
        super().__init__(clips, rate=RATE, rows=rows, seed=seed, skip=skip)
        self._frames = frames
        self._pitches = [pitches.get(r.audio) for r in clips.recordings]

    def _row(self, i: int, rng: np.random.Generator) -> Batch:
        wav = self._clips.read(i)
        room = -(-len(wav) // HOP) - self._frames
        first = int(rng.integers(min(room, 0), max(room, 0) + 1))  # frame of the recording
        return {
            'audio': _cut(wav, (first - MARGIN) * HOP, (self._frames + 2 * MARGIN) * HOP),
            'f0': np.full(self._frames, UNKNOWN, np.float32) if self._pitches[i] is None
            else _cut(self._pitches[i], first, self._frames),
        }  # fmt: skip


class SpeakerBatches(_Cuts):
    """Fields: `audio` float32 (b, w) at 16 kHz, a cut of a recording, which is said again and again
    where it is shorter; `speakers` int32 (b,), places in `speakers`.

    Attributes:
      speakers: their names, sorted.
    """

    def __init__(
        self, clips: Clips, *, samples: int, rows: int, seed: int, skip: Sequence[str] = ()
    ):
        """Args:
          clips: at 16 kHz. samples: of a cut. rows: of a global batch. skip: see `SegmentBatches`.

        Raises:
          InputError: a recording says no speaker, there is one speaker alone, or one of them has
            one recording alone.
        """
        super().__init__(clips, rate=VOICE_RATE, rows=rows, seed=seed, skip=skip)
        self._samples = samples
        self.speakers = check_speakers(clips.recordings)

    def _row(self, i: int, rng: np.random.Generator) -> Batch:
        wav = self._clips.read(i)
        if len(wav) < self._samples:
            wav = np.resize(wav, self._samples)
        first = int(rng.integers(len(wav) - self._samples + 1))
        name = self._clips.recordings[i].speaker
        return {
            'audio': wav[first : first + self._samples],
            'speakers': np.int32(self.speakers.index(name)),
        }


def check_speakers(recordings: Sequence) -> tuple[str, ...]:
    """The speakers of recordings, sorted.

    Raises:
      InputError: a recording says none, or a speaker has one recording alone.
    """
    nameless = [r.audio for r in recordings if not r.speaker]
    if nameless:
        raise InputError(
            f'{len(nameless)} of {len(recordings)} recordings have no "speaker", first: '
            f'{nameless[0]}. Write it into the manifest'
        )
    counts: dict[str, int] = {}
    for recording in recordings:
        counts[recording.speaker] = counts.get(recording.speaker, 0) + 1
    if alone := sorted(name for name, count in counts.items() if count < 2):
        raise InputError(
            f'speakers with one recording alone: {listed(alone)}. Who speaks is learnt from two '
            'or more; add recordings, or leave these speakers out with data.only'
        )
    return tuple(sorted(counts))


def _cut(x: np.ndarray, start: int, length: int) -> np.ndarray:
    """x[start : start + length], zeros where there is nothing."""
    before = max(0, -start)
    return fit(np.pad(x[max(start, 0) : max(start + length, 0)], (before, 0)), length)
