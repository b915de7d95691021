"""Codes for another mouth: what a recording says, said by other voices in the recording's time.

Codes tell who speaks (their frequencies alone name the nano voice nine times in ten), and a prompt
is cut from a recording of the same speaker. A decoder trained on such pairs alone hears the voice
in the codes and need not listen to its prompt. So it is also given codes of other voices: flite
says a sentence with the same phones in all of them, and a phase vocoder moves these to where the
recording has them. The mel stays the recording's own: only the prompt and the speaker vector know
whose it is.

Trained for long, the decoder listens to its prompt less again; perhaps because own codes are never
moved, and what was moved can be told from them.
"""

from collections.abc import Iterator, Sequence
import json
import os
from pathlib import Path
import random

from absl import logging
import numpy as np

from mossjax.data.clips import fit, load_audio
from mossjax.data.codes import RATE, CodesStore, Encoder
from mossjax.data.manifest import Recording
from mossjax.data.speech import CODE_SAMPLES
from mossjax.files import cut_torn_line

OTHERS = 2  # voices that say a recording once more
WINDOW, HOP = 512, 128  # samples of the phase vocoder, 32 and 8 ms
AT_ONCE = 256  # sentences


def write_doubles(
    hears: Encoder, recordings: Sequence[Recording], codes: CodesStore, path: Path
) -> int:
    """Writes a codes store: version 0 of a recording is its own, the others are its doubles'.

    Recordings whose sentence nobody else says have version 0 alone. Goes on if the file exists.

    Returns:
      how many doubles are in it.
    """
    root, done = path.parent.resolve(), set()
    if path.exists():
        cut_torn_line(path)
        with path.open() as lines:
            done = {(x['path'], x['version']) for x in map(json.loads, lines)}

    def name(recording: Recording) -> str:
        return os.path.relpath(recording.audio, root)

    def own(recording: Recording) -> np.ndarray:
        return codes.versions(recording.audio)[0].codes

    everything = list(_jobs(recordings))
    jobs = [job for job in everything if (name(job[0]), job[1]) not in done]
    logging.info('%s: %d versions to make, %d are there', path, len(jobs), len(done))
    with path.open('a') as store:
        for first in range(0, len(jobs), AT_ONCE):
            group = jobs[first : first + AT_ONCE]
            waves = [
                warped(r, double, CODE_SAMPLES[RATE] * len(own(r)))
                for r, version, double in group if version
            ]  # fmt: skip
            heard = iter(hears.encode(waves))
            for r, version, _ in group:
                found = next(heard) if version else own(r)
                line = {'path': name(r), 'version': version, 'codes': found.tolist()}
                store.write(json.dumps(line) + '\n')
            store.flush()
    return len(everything) - len(recordings)


def warped(recording: Recording, double: Recording, length: int) -> np.ndarray:
    """float32 (length,) at 16 kHz: what `double` says, its phones where `recording` has them."""
    here, there = ([0.0, *(end for _, end in r.times)] for r in (recording, double))
    wav = load_audio(double.audio, RATE)
    return fit(stretched(wav, np.array(there) * RATE, np.array(here) * RATE), length)


def stretched(wav: np.ndarray, points: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """wav (w,) with sample points[i] moved to onto[i], even between them; pitch stays.

    A phase vocoder (Laroche and Dolson, 1999): a frame has the magnitudes around its place in
    `wav`; the phase of a peak goes on by as much as it does there in a hop, and the bins around a
    peak keep their phases relative to its.

    Returns:
      float32 (n,), n about onto[-1].
    """
    import librosa

    spectrum = librosa.stft(wav, n_fft=WINDOW, hop_length=HOP)
    times = HOP * np.arange(1 + int(onto[-1]) // HOP)
    place = np.clip(np.interp(times, onto, points) / HOP, 0, spectrum.shape[1] - 1.001)
    left, share = place.astype(int), place % 1
    size, angle = np.abs(spectrum), np.angle(spectrum)
    expected = 2 * np.pi * HOP / WINDOW * np.arange(len(spectrum))[:, None]
    more = angle[:, left + 1] - angle[:, left] - expected
    advance = expected + np.remainder(more + np.pi, 2 * np.pi) - np.pi
    reached = angle[:, left[:1]] + np.cumsum(advance, axis=1) - advance
    magnitude = (1 - share) * size[:, left] + share * size[:, left + 1]
    peaks, there = _peaks(magnitude), angle[:, left]
    phase = there + np.take_along_axis(reached - there, peaks, axis=0)
    return librosa.istft(magnitude * np.exp(1j * phase), hop_length=HOP).astype(np.float32)


def _peaks(magnitude: np.ndarray) -> np.ndarray:
    """(bins, frames) int: the bin of the nearest peak of each frame."""
    from scipy.ndimage import maximum_filter1d

    bins = len(magnitude)
    at = np.arange(bins)[:, None]
    peak = magnitude >= maximum_filter1d(magnitude, 5, axis=0)
    below = np.maximum.accumulate(np.where(peak, at, -bins), axis=0)
    above = np.minimum.accumulate(np.where(peak, at, 3 * bins)[::-1], axis=0)[::-1]
    return np.where(at - below <= above - at, below, above)


def _jobs(recordings: Sequence[Recording]) -> Iterator[tuple[Recording, int, Recording]]:
    """(recording, version, who says it)."""
    alike: dict[tuple, list[Recording]] = {}
    for r in recordings:
        alike.setdefault(_said(r), []).append(r)
    for r in recordings:
        yield from ((r, version, x) for version, x in enumerate([r, *_doubles(r, alike[_said(r)])]))


def _doubles(recording: Recording, alike: Sequence[Recording]) -> list[Recording]:
    """Recordings of OTHERS other voices that say the same, each at the nearest rate."""
    voices = sorted({r.speaker for r in alike} - {recording.speaker})
    rng = random.Random(f'{recording.speaker} {recording.text}')
    drawn = rng.sample(voices, min(OTHERS, len(voices)))

    def apart(other: Recording) -> float:
        return abs(other.extra['rate'] - recording.extra['rate'])

    return [min((r for r in alike if r.speaker == voice), key=apart) for voice in drawn]


def _said(recording: Recording) -> tuple:
    return recording.text, *(phone for phone, _ in recording.times)
