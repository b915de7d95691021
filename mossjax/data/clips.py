"""Recordings as arrays: in memory or read when needed, perturbed on the way."""

from collections.abc import Callable, Sequence
import dataclasses
import math

import numpy as np

from mossjax import values
from mossjax.data.manifest import Recording, check_audio
from mossjax.errors import InputError, check_all

# (path, rate in Hz) -> float32 mono in [-1, 1]
Load = Callable[[str, int], np.ndarray]
SLACK_SECONDS = 0.01  # rounding of "seconds" in a manifest
READERS = 8  # files whose headers are read at once: most of that is waiting for the disk


@dataclasses.dataclass(frozen=True)
class Clips:
    """Recordings at one rate.

    Attributes:
      recordings: manifest entries.
      rate: Hz.
      lengths: int64 (n,) samples at `rate`, for planning; within SLACK_SECONDS of what is read.
      read: index -> float32 (w,) in [-1, 1]; safe to call from threads.
    """

    recordings: Sequence[Recording]
    rate: int
    lengths: np.ndarray
    read: Callable[[int], np.ndarray]

    def __len__(self) -> int:
        return len(self.recordings)


def load_audio(path: str, rate: int) -> np.ndarray:
    """The project's audio reader, imported when first needed."""
    from mossjax.infer import audio

    return audio.load(path, rate)


def clips_in_memory(recordings: Sequence[Recording], rate: int, load: Load = load_audio) -> Clips:
    """Reads everything now and keeps it as int16: 32 kB a second at 16 kHz.

    Raises:
      InputError: listing the recordings that are missing or cannot be read.
    """
    check_audio(recordings)

    def kept(recording: Recording) -> np.ndarray:
        # 32768, so that audio that was int16 on disk comes back as it was.
        wav = np.round(_read(load, recording.audio, rate) * 32768.0)
        return np.clip(wav, -32768, 32767).astype(np.int16)

    stored = check_all(kept, recordings)
    lengths = np.array([len(wav) for wav in stored], np.int64)
    return Clips(recordings, rate, lengths, lambda i: stored[i].astype(np.float32) / 32768.0)


def clips_on_disk(recordings: Sequence[Recording], rate: int, load: Load = load_audio) -> Clips:
    """Reads a recording when it is asked for.

    Lengths come from the key "seconds" of the manifest, or else from the files; those that only
    FFmpeg reads are decoded for it.

    Raises:
      InputError: listing the recordings that are missing, empty or, as far as their lengths were
        asked of them, cannot be read; on reading, of one that is more than SLACK_SECONDS longer or
        shorter than was said.
    """
    check_audio(recordings)
    lengths = check_all(lambda recording: length(recording, rate), recordings, READERS)
    return with_lengths(recordings, lengths, rate, load)


def with_lengths(
    recordings: Sequence[Recording], lengths: Sequence[int], rate: int, load: Load = load_audio
) -> Clips:
    """Clips that are read when asked for, of recordings whose lengths at `rate` are known."""
    lengths = np.array(lengths, np.int64)

    def read(i: int) -> np.ndarray:
        wav = _read(load, recordings[i].audio, rate)
        if abs(len(wav) - lengths[i]) > SLACK_SECONDS * rate:
            raise InputError(
                f'{recordings[i].audio} lasts {len(wav) / rate:.3f} s, the manifest says '
                f'{lengths[i] / rate:.3f} s; correct "seconds" or leave it out.'
            )
        return wav

    return Clips(recordings, rate, lengths, read)


def fit(wav: np.ndarray, length: int) -> np.ndarray:
    """Cuts or right-pads with zeros to `length` samples."""
    wav = wav[:length]
    return np.pad(wav, (0, length - len(wav)))


@dataclasses.dataclass(frozen=True)
class Perturb:
    """Random shift, gain and noise of a recording; each field is an upper bound.

    Attributes:
      shift: seconds of silence put before it, uniform in [0, shift].
      gain: dB, uniform in [-gain, gain].
      noise: standard deviation of added white noise, uniform in [0, noise] of full scale.
    """

    shift: float = 0.07
    gain: float = 6.0
    noise: float = 0.005

    def __call__(
        self, rng: np.random.Generator, wav: np.ndarray, rate: int
    ) -> tuple[np.ndarray, int]:
        """wav (w,) -> (float32 (w + offset,) in [-1, 1], offset in samples)."""
        offset = int(rng.integers(0, int(self.shift * rate) + 1))
        gain = 10.0 ** (rng.uniform(-self.gain, self.gain) / 20.0)
        level = rng.uniform(0.0, self.noise)
        out = np.pad(wav, (offset, 0)) * np.float32(gain)
        if level > 0:
            out = out + np.float32(level) * rng.standard_normal(len(out), np.float32)
        return np.clip(out, -1.0, 1.0).astype(np.float32), offset


CLEAN = Perturb(shift=0.0, gain=0.0, noise=0.0)
AUGMENT = Perturb()


def _read(load: Load, path: str, rate: int) -> np.ndarray:
    wav = load(path, rate)
    if not len(wav):
        raise InputError(f'{path}: the recording is empty; remove its line from the manifest.')
    return wav


def length(recording: Recording, rate: int) -> int:
    """Samples at `rate`, rounded up, as resampling does.

    Raises:
      InputError: the file is missing, empty, or cannot be read; "seconds" is no such number.
    """
    from mossjax.infer import audio

    source = audio.Source.of(recording.audio)
    if 'seconds' in recording.extra:
        seconds = values.number(
            recording.extra['seconds'], f'"seconds" of {source.name} in the manifest',
            values.Range(0, audio.LONGEST_SECONDS, above=True),
        )  # fmt: skip
        return math.ceil(round(seconds * rate, 3))
    header = audio.read_header(source)
    return -(-header.frames * rate // header.rate)
