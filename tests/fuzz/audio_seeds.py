"""Recordings in every container: what comes of one is its samples at 16 kHz."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mossjax.infer import audio
from tests.fuzz.seed import Seed, sha256


def _wave(path: str) -> Callable[[Path], str]:
    return lambda folder: sha256(audio.load(folder / path, 16000))


def _sound(name: str, **options) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        import soundfile

        wav = 0.3 * np.sin(np.arange(8000) * 0.05).astype(np.float32)
        soundfile.write(folder / name, wav, 16000, **options)

    return make


SEEDS = (
    Seed('WAV', 'q.wav', 'binary', _sound('q.wav'), _wave('q.wav')),
    Seed('FLAC', 'q.flac', 'binary', _sound('q.flac'), _wave('q.flac')),
    Seed('OGG', 'q.ogg', 'binary', _sound('q.ogg'), _wave('q.ogg')),
    Seed('MP3', 'q.mp3', 'binary', _sound('q.mp3'), _wave('q.mp3')),
)
