"""The pitch store: f0 of recordings, measured once, what a vocoder's pitch is trained towards.

A JSONL file, one recording a line, {"path": "wav/0001.wav", "f0": [0, 112.5, ...]}, with `path`
relative to the file and f0 in Hz at 50 frames a second, frame i around (i + 1/2) / 50 s, 0 where
nothing is voiced.
"""

from collections.abc import Mapping, Sequence
import concurrent.futures
import contextlib
import json
import multiprocessing
import os
from pathlib import Path

from absl import logging
import numpy as np

from mossjax import paths, values
from mossjax.data.clips import load_audio
from mossjax.data.manifest import Recording, check_audio
from mossjax.errors import InputError
from mossjax.files import replacing

RATE, HOP, WINDOW = 16_000, 320, 1024  # Hz, samples
LOWEST, HIGHEST = 60.0, 500.0  # Hz
FEW = 16  # recordings; for fewer other processes cost more than they bring


def pitch(wave: np.ndarray) -> np.ndarray:
    """(w,) at 16 kHz -> (ceil(w / 320),) float32 Hz, 0 where unvoiced (probabilistic YIN)."""
    import librosa

    frames = -(-len(wave) // HOP)
    # Frame i of an array that is not centred lies around i * HOP + WINDOW / 2.
    before = (WINDOW - HOP) // 2
    wave = np.pad(wave, (before, before + frames * HOP - len(wave)))
    f0, voiced, _ = librosa.pyin(
        wave, fmin=LOWEST, fmax=HIGHEST, sr=RATE, frame_length=WINDOW, hop_length=HOP,
        center=False, resolution=0.2, fill_na=0.0,
    )  # fmt: skip
    return np.where(voiced, f0, 0).astype(np.float32)[:frames]


def measure(
    recordings: Sequence[Recording], path: str | os.PathLike, workers: int | None = None
) -> None:
    """Writes the store of these recordings, whole or not at all.

    Args:
      workers: processes, by default one a core.

    Raises:
      InputError: naming recordings that are missing or cannot be read.
    """
    check_audio(recordings)
    logging.info('measuring the pitch of %d recordings', len(recordings))
    root = Path(path).resolve().parent
    audio = [recording.audio for recording in recordings]
    with contextlib.ExitStack() as stack:
        if len(audio) < FEW:
            found = map(_of_file, audio)
        else:  # spawned: a process that computes with jax must not be forked
            pool = concurrent.futures.ProcessPoolExecutor(
                workers, multiprocessing.get_context('spawn')
            )
            found = stack.enter_context(pool).map(_of_file, audio, chunksize=8)
        lines = [
            json.dumps({
                'path': os.path.relpath(name, root), 'f0': [round(float(x), 1) for x in f0]
            })
            for name, f0 in zip(audio, found, strict=True)
        ]  # fmt: skip
    with replacing(Path(path)) as temporary:
        temporary.write_text('\n'.join(lines) + '\n')


def read(path: str | os.PathLike) -> Mapping[str, np.ndarray]:
    """{absolute path of a recording: f0 (frames,) float32}.

    Raises:
      InputError: it cannot be read, or a line is no such entry.
    """
    root, found = Path(path).resolve().parent, {}
    with paths.errors_of(path, 'read'), open(path, encoding='utf-8', errors='replace') as lines:
        for number, line in enumerate(lines, 1):
            where = f'{path}:{number}'
            fields = values.parse_json(line, where, 'Delete the file to measure again.')
            f0 = fields.get('f0') if isinstance(fields, dict) else None
            if not isinstance(f0, list) or not all(x in values.NOT_NEGATIVE for x in f0) or (
                not isinstance(fields.get('path'), str)
            ):
                raise InputError(
                    f'{where}: expected {{"path": ..., "f0": [...]}}; delete the file to measure '
                    'again'
                )
            found[os.path.normpath(root / fields['path'])] = np.array(f0, np.float32)
    return found


def _of_file(path: str) -> np.ndarray:
    return pitch(load_audio(path, RATE))
