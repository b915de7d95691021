"""Cuts of one length out of recordings, for vocoders and speaker encoders, by step.

Row i of step s is recording number s * rows + i of an endless sequence in which every epoch is
shuffled anew; where the cut begins is drawn. See `pipeline.Batches`.
"""

from collections.abc import Mapping, Sequence
import functools

import numpy as np

from mossjax.data import speech
from mossjax.data.clips import Clips, fit
from mossjax.data.manifest import Recording
from mossjax.data.pipeline import Batch
from mossjax.errors import InputError
from mossjax.models.flow.mel import HOP, RATE
from mossjax.models.speaker import fbank
from mossjax.models.vocoder.losses import UNKNOWN
from mossjax.values import listed

MARGIN = 2  # frames on either side that a mel's window reaches into


class _Cuts:
    """Which recordings make up a batch."""

    def __init__(self, clips: Clips, *, rate: int, rows: int, seed: int, skip: Sequence[str]):
        speech.code_samples(clips, rate)
        self._clips, self._rows, self._seed = clips, rows, seed
        self._skip = speech.named(clips, skip)
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)

    def size(self, step: int) -> int:
        """See `pipeline.Batches`."""
        del step
        return self._rows

    def names(self, step: int) -> list[str]:
        """See `pipeline.Batches`."""
        return [self._clips.recordings[i].audio for i in self._indices(step)]

    def batch(self, step: int, rows: Sequence[int] | None = None) -> Batch:
        """See `pipeline.Batches`."""
        indices = self._indices(step)
        return speech.stacked([
            # By place in the global batch, whoever asks.
            self._row(int(indices[at]), np.random.default_rng([self._seed, step, int(at), 1]))
            for at in (range(self._rows) if rows is None else rows)
        ])

    def _indices(self, step: int) -> np.ndarray:
        places = step * self._rows + np.arange(self._rows)
        epochs, at = np.divmod(places, len(self._clips))
        found = [self._order(int(e))[i] for e, i in zip(epochs, at, strict=True)]
        return speech.without(self._skip, np.array(found), step)

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._clips))


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
          skip: names of recordings (`audio`) that are left out, see `speech.without`.

        Raises:
          InputError: clips of another rate, or no recording has a name in `skip`.
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

    A recording played faster or slower is somebody else's: higher and quicker, formants and all.
    That makes many speakers of few (speed perturbation of Ko et al. 2015, as speaker recognition
    takes it: new classes). A cut's speed is drawn.

    Attributes:
      speakers: their names, sorted; then again at each of `speeds`, e.g. 'slt x1.1'.
    """

    def __init__(
        self, clips: Clips, *, samples: int, rows: int, seed: int, skip: Sequence[str] = (),
        speeds: Sequence[float] = (),
    ):  # fmt: skip
        """Args:
          clips: at 16 kHz. samples: of a cut. rows: of a global batch. skip: see `SegmentBatches`.
          speeds: at which recordings are played too, beside their own; none is 1, none comes twice.

        Raises:
          InputError: a recording says no speaker, a speaker has one recording alone, or as of
            `SegmentBatches`.
        """
        super().__init__(clips, rate=fbank.RATE, rows=rows, seed=seed, skip=skip)
        self._samples = samples
        groups = by_speaker(clips.recordings)
        self._speeds = (1.0, *speeds)
        self.speakers = (*groups, *(f'{name} x{speed}' for speed in speeds for name in groups))
        self._groups = len(groups)
        self._who = np.empty(len(clips), np.int32)
        for number, indices in enumerate(groups.values()):
            self._who[indices] = number

    def _row(self, i: int, rng: np.random.Generator) -> Batch:
        speed = int(rng.integers(len(self._speeds)))
        length = round(self._samples * self._speeds[speed])
        wav = self._clips.read(i)
        if len(wav) < length:
            wav = np.resize(wav, length)
        first = int(rng.integers(len(wav) - length + 1))
        return {
            'audio': _played(wav[first : first + length], self._samples),
            'speakers': np.int32(self._who[i] + speed * self._groups),
        }


def by_speaker(recordings: Sequence[Recording]) -> dict[str, np.ndarray]:
    """Speaker -> the places of their recordings, sorted by name.

    Raises:
      InputError: a recording says none, or a speaker has one recording alone.
    """
    groups: dict[str, list[int]] = {}
    for i, recording in enumerate(recordings):
        groups.setdefault(recording.speaker, []).append(i)
    if nameless := groups.get(''):
        raise InputError(
            f'{len(nameless)} of {len(recordings)} recordings have no "speaker", first: '
            f'{recordings[nameless[0]].audio}. Write it into the manifest'
        )
    if alone := sorted(name for name, indices in groups.items() if len(indices) < 2):
        raise InputError(
            f'speakers with one recording alone: {listed(alone)}. Who speaks is learnt from two '
            'or more; add recordings, or leave these speakers out with data.only'
        )
    return {name: np.array(groups[name]) for name in sorted(groups)}


def _played(x: np.ndarray, samples: int) -> np.ndarray:
    """x in so many samples: faster or slower, the pitch with it."""
    if len(x) == samples:
        return x
    import librosa

    return fit(librosa.resample(x, orig_sr=len(x), target_sr=samples), samples)


def _cut(x: np.ndarray, start: int, length: int) -> np.ndarray:
    """x[start : start + length], zeros where there is nothing."""
    before = max(0, -start)
    return fit(np.pad(x[max(start, 0) : max(start + length, 0)], (before, 0)), length)
