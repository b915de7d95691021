"""The same codes in another mouth: sound of other voices in the time of a recording.

Codes tell who speaks (their frequencies alone name the nano voice nine times in ten), and a prompt
is cut from a recording of the same speaker. A decoder trained on such pairs alone hears the voice
in the codes and need not listen to its prompt. So it is also given sound of other voices: flite
says a sentence with the same phones in all of them, and a phase vocoder moves these to where the
recording has them. The codes stay the recording's own, as codes of replies are: nothing in them
tells a double, only the prompt and the speaker vector know whose the mel is. (With codes of moved
sound, the mel of the recording, a decoder came to know moved from unmoved codes, and listened to
its prompt ever less where they were not.)
"""

from collections.abc import Iterator, Sequence
import dataclasses
import json
import os
from pathlib import Path
import random

import numpy as np

from mossjax.data.clips import fit, load_audio
from mossjax.data.codes import RATE, CodesStore
from mossjax.data.manifest import Recording, write_manifest
from mossjax.data.speech import CODE_SAMPLES
from mossjax.files import replacing

OTHERS = {'answer': 3}  # voices that say a recording of this kind once more; 1 of other kinds
KIND = '{}_double'
WINDOW, HOP = 512, 128  # samples of the phase vocoder, 32 and 8 ms


def write_doubles(recordings: Sequence[Recording], codes: CodesStore, root: Path) -> int:
    """Writes root/doubles/*.flac, and a manifest and a codes store of recordings and doubles:
    root/doubles.jsonl and root/doubles_codes.jsonl.

    A double has text and labels of the recording whose codes it has, the speaker who is heard, and
    a kind of its own (KIND). Goes on where it was stopped: sound that is there is kept.

    Returns:
      how many doubles there are.
    """
    import soundfile
    from tqdm import tqdm

    def own(recording: Recording) -> np.ndarray:
        return codes.versions(recording.audio)[0].codes

    pairs, jobs = [(r, own(r)) for r in recordings], list(_jobs(recordings))
    for number, (r, other) in enumerate(tqdm(jobs, desc='doubles', disable=None)):
        path, length = root / 'doubles' / f'{number:05d}.flac', CODE_SAMPLES[RATE] * len(own(r))
        if not path.exists():
            with replacing(path) as part:
                soundfile.write(part, warped(other, r, length), RATE, subtype='PCM_16')
        said = {'kind': KIND.format(r.extra['kind']), 'seconds': length / RATE}
        double = dataclasses.replace(
            r, audio=str(path), speaker=other.speaker, extra={**r.extra, **said}
        )
        pairs.append((double, own(r)))
    with replacing(root / 'doubles_codes.jsonl') as part, part.open('w') as store:
        for r, heard in pairs:
            line = {'path': os.path.relpath(r.audio, root), 'codes': heard.tolist()}
            store.write(json.dumps(line) + '\n')
    write_manifest(root / 'doubles.jsonl', [r for r, _ in pairs])
    return len(jobs)


def warped(spoken: Recording, onto: Recording, length: int) -> np.ndarray:
    """float32 (length,) at 16 kHz: what `spoken` says, its phones where `onto` has them."""
    there, here = (np.array([0.0, *(end for _, end in r.times)]) * RATE for r in (spoken, onto))
    return fit(stretched(load_audio(spoken.audio, RATE), there, here), length)


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


def _jobs(recordings: Sequence[Recording]) -> Iterator[tuple[Recording, Recording]]:
    """(recording, another voice's that says the same), in the order of recordings."""
    alike: dict[tuple, list[Recording]] = {}
    for r in recordings:
        alike.setdefault(_said(r), []).append(r)
    for r in recordings:
        yield from ((r, double) for double in _doubles(r, alike[_said(r)]))


def _doubles(recording: Recording, alike: Sequence[Recording]) -> list[Recording]:
    """Recordings of some other voices that say the same, each at the nearest rate."""
    kind, rate = recording.extra['kind'], recording.extra['rate']
    voices = sorted({r.speaker for r in alike} - {recording.speaker})
    rng = random.Random(f'{recording.speaker} {rate} {recording.text}')
    drawn = rng.sample(voices, min(OTHERS.get(kind, 1), len(voices)))

    def apart(other: Recording) -> float:
        return abs(other.extra['rate'] - rate)

    return [min((r for r in alike if r.speaker == voice), key=apart) for voice in drawn]


def _said(recording: Recording) -> tuple:
    return recording.text, *(phone for phone, _ in recording.times)
