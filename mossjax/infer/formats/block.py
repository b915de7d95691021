"""Samples as decoders give them, and what decoders say of a file."""

import functools
from pathlib import PurePath
import shlex
from typing import NamedTuple

from absl import logging
import numpy as np

from mossjax.errors import InputError

# Hz. Below, no speech is left; the fastest converters that are sold run at 768 kHz.
RATES = (4_000, 768_000)
MOST_CHANNELS = 256  # the largest microphone arrays in use
HEADERLESS = {'.raw', '.pcm', '.s16', '.sw'}
# A stream may end so much before its own count (the last block of a codec); more is damage, less
# than the second is not worth a word.
MISSING_SECONDS, ROUNDING_SECONDS = 0.1, 0.01


class Block(NamedTuple):
    """samples: (w, c) float32, full scale at 1. rate: Hz."""

    rate: int
    samples: np.ndarray


class Header(NamedTuple):
    """What a recording holds. frames: samples of each channel. rate: Hz."""

    rate: int
    channels: int
    frames: int

    @property
    def seconds(self) -> float:
        return self.frames / self.rate


def check_format(rate: float, channels: int, name: str) -> None:
    """
    Raises:
      InputError: no sound is recorded so; the header is damaged.
    """
    if not RATES[0] <= rate <= RATES[1]:
        raise InputError(
            f'{name} says it has {rate:.15g} samples a second; from {RATES[0]} to {RATES[1]} are '
            'read. Its header is damaged; export it again'
        )
    if not 1 <= channels <= MOST_CHANNELS:
        raise InputError(
            f'{name} says it has {channels} channels; from 1 to {MOST_CHANNELS} are read. Its '
            'header is damaged; export it again'
        )


@functools.lru_cache(4096)
def say(message: str) -> None:
    """Warns, of one thing once: training reads a recording many times."""
    logging.warning('%s', message)


def by_ffmpeg(name: str, before: str = '', after: str = '') -> str:
    """The command that converts a file to WAV, with options before and after its name."""
    path = PurePath(name)
    wav = path.with_suffix('.wav')
    wav = wav if wav != path else path.with_stem(f'{path.stem}-mended')
    words = ['ffmpeg', before, '-i', shlex.quote(name), after, shlex.quote(str(wav))]
    return ' '.join(word for word in words if word)


def remedy(name: str) -> str:
    """What to do about a file that no decoder knows."""
    if PurePath(name).suffix.lower() not in HEADERLESS:
        return f'give a WAV, FLAC, OGG or MP3 file ({by_ffmpeg(name)})'
    return f'samples without a header: {by_ffmpeg(name, "-f s16le -ar RATE -ac CHANNELS")}'


def check_complete(got: int, promised: int, rate: int, name: str) -> None:
    """
    Raises:
      InputError: many samples are missing.
    """
    missing = (promised - got) / rate
    if missing > MISSING_SECONDS:
        raise InputError(
            f'{name} breaks off or has gaps: {got / rate:.2f} s can be decoded of '
            f'{promised / rate:.2f} s; copy it again, or keep what is left: {by_ffmpeg(name)}'
        )
    if missing > ROUNDING_SECONDS:
        say(f'{name} lacks {1000 * missing:.0f} ms of the {promised / rate:.2f} s it should hold')
