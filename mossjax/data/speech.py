"""Batches of recordings for training the tokenizer and the decoder, by step.

Recordings are grouped by length into a few buckets, so that few shapes are compiled; a batch
comes from one bucket and holds about the same seconds of audio whichever it is. In an epoch every
recording appears `weight` times. Batch i is a function of (seed, i) and the same on any topology;
rows of it are read by number, see `pipeline.Batches`.
"""

from collections.abc import Callable, Mapping, Sequence
import functools

import numpy as np

from mossjax.data.clips import Clips, fit
from mossjax.data.codes import CodesStore
from mossjax.data.labels import Inventory, Transcripts
from mossjax.data.manifest import Recording
from mossjax.data.pipeline import Batch
from mossjax.data.rows import IGNORE
from mossjax.errors import InputError
from mossjax.values import listed

CODE_SAMPLES = {16_000: 1280, 24_000: 1920}  # samples of one code (80 ms), by rate in Hz
MOST_EDGES = 1024  # padded lengths that are considered
FRAMES_PER_SECOND = 50
FRAME_SAMPLES = 320  # of such a frame, at 16 kHz

Weight = Callable[[Recording], int]


def equal(recording: Recording) -> int:
    """Every recording once an epoch."""
    del recording
    return 1


def by_key(key: str, table: Mapping[str, int]) -> Weight:
    """Weight from an extra key of the manifest: by_key('kind', {'answer': 6}); 1 if not listed."""
    return lambda recording: table.get(recording.extra.get(key), 1)


class Schedule:
    """step -> (padded length, indices): which recordings make up a global batch."""

    def __init__(
        self,
        lengths: Sequence[int],
        weights: Sequence[int],
        *,
        budget: int,
        seed: int,
        buckets: int = 4,
        unit: int = 1,
        rows_multiple: int = 1,
        skip: Sequence[int] = (),
    ):
        """Args:
          lengths: of recordings, samples or codes.
          weights: appearances of each in an epoch; 0 leaves it out.
          budget: padded length of a batch in all; at least `rows_multiple` rows are taken.
          buckets: how many padded lengths there may be.
          unit: padded lengths are multiples of it.
          rows_multiple: rows of a batch are a multiple of it (devices that hold rows).
          skip: indices that are left out, see `without`.

        Raises:
          InputError: a weight is not a whole number, or nothing is left.
        """
        lengths, counts = np.asarray(lengths, np.int64), np.asarray(weights)
        if counts.size and (counts.dtype.kind not in 'iu' or counts.min() < 0):
            raise InputError('weights of recordings must be whole numbers from 0.')
        if not counts.size or not counts.sum():
            raise InputError('no recordings to train on; check the manifest and the weights.')
        self._seed, self._skip = seed, np.asarray(skip, np.int64)
        used = lengths[counts > 0]
        self.lengths = bucket_lengths(np.repeat(used, counts[counts > 0]), buckets, unit)
        shown = np.repeat(np.arange(len(lengths)), counts)  # an epoch: index, weight times
        which = np.searchsorted(self.lengths, lengths[shown])
        self._members = [shown[which == k] for k in range(len(self.lengths))]
        self.rows = [
            max(1, int(budget // (width * rows_multiple))) * rows_multiple for width in self.lengths
        ]
        batches = [-(-len(m) // b) for m, b in zip(self._members, self.rows, strict=True)]
        self.steps_per_epoch = sum(batches)
        self._plan = functools.lru_cache(maxsize=2)(self._plan_epoch)

    def bucket_of(self, length: int) -> int:
        """The bucket whose padded length a recording of `length` gets."""
        return int(np.searchsorted(self.lengths, length))

    def size(self, step: int) -> int:
        """Rows of global batch `step`."""
        return len(self.batch(step)[1])

    def batch(self, step: int) -> tuple[int, np.ndarray]:
        """(padded length, int64 (b,) indices of the recordings)."""
        epoch, i = divmod(step, self.steps_per_epoch)
        bucket, indices = self._plan(epoch)[i]
        return int(self.lengths[bucket]), without(self._skip, indices, step)

    def _plan_epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        rng = np.random.default_rng([self._seed, epoch])
        plan = []
        for bucket, (members, rows) in enumerate(zip(self._members, self.rows, strict=True)):
            order = rng.permutation(members)
            # The last batch is filled up from the start of the same order.
            order = np.resize(order, -(-len(order) // rows) * rows)
            plan += [(bucket, part) for part in order.reshape(-1, rows)]
        return [plan[i] for i in rng.permutation(len(plan))]


def without(skip: Sequence[int], indices: np.ndarray, step: int) -> np.ndarray:
    """The indices of batch `step`; the first that is not skipped comes again for each that is.

    So nothing else changes, in this batch or another.

    Raises:
      InputError: all are to be skipped.
    """
    skipped = np.isin(indices, skip)
    if skipped.all():
        raise InputError(f'all recordings of batch {step} are to be skipped; name fewer.')
    return np.where(skipped, indices[np.argmin(skipped)], indices)


def bucket_lengths(lengths: np.ndarray, buckets: int, unit: int) -> np.ndarray:
    """At most `buckets` padded lengths, multiples of `unit`, with the least padding in all.

    Dynamic programming over the lengths that occur: least[j] is the smallest padded total of the
    recordings that fit into edges[j], with the buckets so far.
    """
    edges, counts = np.unique(-(-lengths // unit) * unit, return_counts=True)
    within = np.cumsum(counts)  # recordings up to each edge
    if len(edges) > MOST_EDGES:
        kept = np.unique(np.linspace(0, len(edges) - 1, MOST_EDGES).round().astype(int))
        edges, within = edges[kept], within[kept]
    least, came_from = edges * within, []
    # extra[i, j]: padded length of the recordings between edges i and j, put into bucket j.
    extra = (within[None] - within[:, None]) * edges[None]
    extra = np.where(np.tri(len(edges), k=-1, dtype=bool).T, extra, np.iinfo(np.int64).max // 2)
    for _ in range(min(buckets, len(edges)) - 1):
        total = least[:, None] + extra
        came_from.append(np.argmin(total, axis=0))
        least = np.minimum(total.min(axis=0), np.iinfo(np.int64).max // 2)
    chosen = [len(edges) - 1]
    for previous in reversed(came_from):
        chosen.append(int(previous[chosen[-1]]))
    return np.unique(edges[chosen])


class TokenizerBatches:
    """Batches for training the tokenizer to transcribe.

    Fields: `audio` float32 (b, w) 16 kHz, `lengths` int32 (b,) samples, `phones` int32
    (b, w / 320) frame labels at 50 Hz (-1 none), `targets` int32 (b, n) (0 after the end),
    `target_lengths` int32 (b,); with transcripts also `text` int32 (b, u), -100 after the end. w is
    a multiple of 1280; n and u are fixed for each w. Distortions are made on the device, by the
    training task.
    """

    def __init__(
        self,
        clips: Clips,
        inventory: Inventory,
        transcripts: Transcripts | None = None,
        *,
        seconds: float,
        seed: int,
        room: float = 0.0,
        weight: Weight = equal,
        buckets: int = 4,
        rows_multiple: int = 1,
        skip: Sequence[str] = (),
    ):
        """Args:
          clips: at 16 kHz.
          seconds: padded audio in a global batch.
          room: seconds of silence kept after each recording, for a task that delays it.
          weight: recording -> appearances in an epoch.
          rows_multiple: rows of a global batch are a multiple of it.
          skip: names of recordings (`audio`) that are left out, see `Schedule`.
        """
        unit = code_samples(clips, 16_000)
        longest = clips.lengths + round(room * clips.rate)
        self.schedule = Schedule(
            longest, [weight(r) for r in clips.recordings], budget=int(seconds * clips.rate),
            seed=seed, buckets=buckets, unit=unit, rows_multiple=rows_multiple,
            skip=named(clips, skip),
        )  # fmt: skip
        self._clips, self._inventory = clips, inventory
        self._targets = [inventory.sequence(r) for r in clips.recordings]
        self._widths = _widest(self.schedule, longest, [len(t) for t in self._targets])
        self._texts = transcripts and [transcripts.sequence(r) for r in clips.recordings]
        if self._texts:
            self._text_widths = _widest(self.schedule, longest, [len(t) for t in self._texts])

    def size(self, step: int) -> int:
        """See `pipeline.Batches`."""
        return self.schedule.size(step)

    def names(self, step: int) -> list[str]:
        """See `pipeline.Batches`."""
        return [self._clips.recordings[i].audio for i in self.schedule.batch(step)[1]]

    def batch(self, step: int, rows: Sequence[int] | None = None) -> Batch:
        """See `pipeline.Batches`."""
        width, indices = self.schedule.batch(step)
        chosen = indices if rows is None else indices[np.asarray(rows)]
        return stacked([self._row(int(i), width) for i in chosen])

    def _row(self, i: int, width: int) -> Batch:
        wav, target = self._clips.read(i), self._targets[i]
        times = self._clips.recordings[i].times
        text = {}
        if self._texts:
            room = self._text_widths[width] - len(self._texts[i])
            text['text'] = np.pad(self._texts[i], (0, room), constant_values=IGNORE)
        return text | {
            'audio': fit(wav, width),
            'lengths': np.int32(min(len(wav), width)),
            'phones': self._inventory.frames(times, width // FRAME_SAMPLES, FRAMES_PER_SECOND),
            'targets': np.pad(target, (0, self._widths[width] - len(target))),
            'target_lengths': np.int32(len(target)),
        }


class DecoderBatches:
    """Batches for training the decoder.

    Fields: `codes` int32 (b, n) (0 after the end), `code_lengths` int32 (b,), `audio` float32
    (b, 1920 n) 24 kHz, aligned with the codes and silent after them. The version of the codes
    (shifted, noisy) is drawn anew each time; the audio is clean, shifted alike. Replies are spoken
    from undisturbed codes, so `undisturbed` lets these be drawn more often than the others.
    """

    def __init__(
        self,
        clips: Clips,
        codes: CodesStore,
        *,
        seconds: float,
        seed: int,
        weight: Weight = equal,
        undisturbed: float = 0.0,
        buckets: int = 4,
        rows_multiple: int = 1,
        skip: Sequence[str] = (),
    ):
        """Args: as `TokenizerBatches`, with clips at 24 kHz and their codes."""
        self._unit = code_samples(clips, 24_000)
        self._versions = [codes.versions(r.audio) for r in clips.recordings]
        longest = [max(len(v.codes) for v in versions) for versions in self._versions]
        self.schedule = Schedule(
            longest, [weight(r) for r in clips.recordings],
            budget=int(seconds * clips.rate / self._unit), seed=seed, buckets=buckets,
            rows_multiple=rows_multiple, skip=named(clips, skip),
        )  # fmt: skip
        self._clips, self._seed = clips, seed
        self._undisturbed = undisturbed

    def size(self, step: int) -> int:
        """See `pipeline.Batches`."""
        return self.schedule.size(step)

    def names(self, step: int) -> list[str]:
        """See `pipeline.Batches`."""
        return [self._clips.recordings[i].audio for i in self.schedule.batch(step)[1]]

    def batch(self, step: int, rows: Sequence[int] | None = None) -> Batch:
        """See `pipeline.Batches`."""
        width, indices = self.schedule.batch(step)
        return stacked([
            # By place in the global batch, whoever asks.
            self._row(int(indices[at]), width, np.random.default_rng([self._seed, step, int(at)]))
            for at in (range(len(indices)) if rows is None else rows)
        ])

    def _row(self, i: int, width: int, rng: np.random.Generator) -> Batch:
        versions = self._versions[i]
        first = rng.random() < self._undisturbed
        version = versions[0 if first else rng.integers(len(versions))]
        offset = round(version.offset * self._clips.rate)
        wav = np.pad(self._clips.read(i), (offset, 0))
        return {
            'codes': np.pad(version.codes, (0, width - len(version.codes))),
            'code_lengths': np.int32(len(version.codes)),
            'audio': fit(fit(wav, len(version.codes) * self._unit), width * self._unit),
        }


def named(clips: Clips, names: Sequence[str]) -> list[int]:
    """Indices of the recordings that messages give these names (`audio`).

    Raises:
      InputError: there is none of a name.
    """
    at = {recording.audio: i for i, recording in enumerate(clips.recordings)}
    if unknown := [name for name in names if name not in at]:
        raise InputError(f'recordings to skip that the manifest lacks: {listed(unknown)}')
    return [at[name] for name in names]


def code_samples(clips: Clips, rate: int) -> int:
    """Samples of a code in clips that must be at `rate` Hz.

    Raises:
      InputError: they are not.
    """
    if clips.rate != rate:
        raise InputError(f'clips are at {clips.rate} Hz; load them at {rate} Hz for this network.')
    return CODE_SAMPLES[rate]


def stacked(rows: list[Batch]) -> Batch:
    """Rows of the same fields as a batch."""
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def _widest(schedule: Schedule, lengths: np.ndarray, sizes: Sequence[int]) -> dict[int, int]:
    """{padded length: most targets of any recording in that bucket}."""
    widest = {int(width): 1 for width in schedule.lengths}
    for length, size in zip(lengths, sizes, strict=True):
        bucket = schedule.bucket_of(length)
        if bucket < len(schedule.lengths):  # left out by its weight and longer than the rest
            width = int(schedule.lengths[bucket])
            widest[width] = max(widest[width], size)
    return widest
