"""Codes of a file to sound through a stream: how it would have been in a conversation."""

from collections.abc import Sequence
from pathlib import Path
import time
from typing import NamedTuple

import numpy as np

from mossjax.convert import codec_directory, codec_flow
from mossjax.errors import InputError
from mossjax.infer.speech_decoder import SpeechDecoder
from mossjax.infer.speech_stream import LONGEST, SpeechSteps, growing
from mossjax.infer.streaming import Session
from mossjax.models.flow.config import FlowConfig


def checked_hops(config: FlowConfig, longest: int | None = None) -> tuple[int, ...]:
    """`growing` to a length that a user may have asked for.

    Raises:
      InputError: it is no whole number of chunks.
    """
    if longest is not None and longest % config.chunk:
        raise InputError(
            f'steps of {longest} codes: this codec speaks in chunks of {config.chunk}; give a '
            f'multiple of it, or {LONGEST} by default'
        )
    return growing(config.chunk, longest or LONGEST)


def streaming_stem(codec_dir: str | Path, config: FlowConfig) -> str:
    """The checkpoint that learned to speak in chunks, where the directory has it."""
    stem = f'{codec_flow.STEM}-chunk-{config.chunk}'
    return stem if codec_directory.has(codec_dir, stem) else codec_flow.STEM


class Spent(NamedTuple):
    """What a session took: seconds to its first sound, seconds in all, seconds of sound."""

    first: float
    total: float
    sound: float


class StreamedSpeech:
    """Speaks utterances through a stream, one after the other, as if their codes came one by one.

    Has what `infer.vocode` asks of a `SpeechDecoder`.

    Attributes:
      spent: of each utterance so far. Steps are compiled beforehand, but for ends in the first
        ones.
      bytes_each: of a session's state.
    """

    def __init__(self, decoder: SpeechDecoder, hops: Sequence[int] | None = None):
        """Args:
          hops: see `SpeechSteps`.

        Raises:
          InputError: see `SpeechSteps`.
        """
        self.steps, self.spent = SpeechSteps(decoder, hops=hops), []
        self.rate, self.vocoder = decoder.rate, decoder.vocoder
        warm = self.steps.sessions()
        self.bytes_each = warm.bytes_each
        codes = np.zeros(sum(self.steps.flow.hops) + decoder.config.lookahead, np.int32)
        warm.feed({0: codes})
        warm.feed({}, ending=[0])

    def decode_many(self, utterances: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The 24 kHz wave of each utterance: 1920 samples a code, of any number of codes."""
        return [self._decode(np.asarray(codes, np.int32)) for codes in utterances]

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        session, began, first = Session(self.steps.sessions()), time.perf_counter(), None
        parts = []
        for i in range(len(codes)):
            parts.append(session.feed(codes[i : i + 1]))
            if first is None and len(parts[-1]):
                first = time.perf_counter() - began
        wave = np.concatenate([*parts, session.finish()])
        total = time.perf_counter() - began
        self.spent.append(Spent(first or total, total, len(wave) / self.rate))
        return wave

    def __str__(self) -> str:
        """What it cost."""
        if not self.spent:
            return f'nothing streamed; a session keeps {self.bytes_each / 1e6:.1f} MB'
        first = np.median([spent.first for spent in self.spent])
        total, sound = (sum(getattr(x, name) for x in self.spent) for name in ('total', 'sound'))
        return (
            f'first sound after {first:.2f} s (median of {len(self.spent)}), '
            f'{total / max(sound, 1e-9):.2f} s a second of sound, '
            f'{self.bytes_each / 1e6:.1f} MB a session at any length'
        )
