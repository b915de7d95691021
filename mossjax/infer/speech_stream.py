"""Codes in, sound out, while the codes are still being made."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from mossjax.errors import InputError
from mossjax.infer.flow_stream import FlowSteps
from mossjax.infer.speech_decoder import SpeechDecoder, checked_codes
from mossjax.infer.streaming import Pipeline, Sessions
from mossjax.infer.vocoder import HiftVocoder
from mossjax.infer.voice import Voice
from mossjax.models.flow.config import FlowConfig, Window
from mossjax.models.flow.stream import State
from mossjax.models.vocoder.hift.stream import HELD

LONGEST = 25  # codes of a step, 2 s


def growing(chunk: int, longest: int = LONGEST) -> tuple[int, ...]:
    """Codes of a session's first step, of its second, and of all others, in whole chunks."""
    longest = max(chunk, longest // chunk * chunk)
    return (*(hop for hop in (chunk, 2 * chunk) if hop < longest), longest)


class Speech(Pipeline):
    """Sessions that take codes and give 24 kHz samples: 1920 of each code, in the end exactly."""

    def __init__(self, flow: Sessions, vocoder: Sessions, config: FlowConfig):
        """Args:
          flow: codes to mel. vocoder: mel to samples. config: the flow's.
        """
        super().__init__(flow, vocoder)
        self.config = config

    def feed(
        self, pieces: Mapping[int, Sequence[int]], *, ending: Collection[int] = ()
    ) -> dict[int, np.ndarray]:
        """As `Sessions.feed`.

        Raises:
          InputError: a session that has ended, or codes that the decoder does not have; no session
            has then taken anything.
        """
        pieces = {i: checked_codes(x, self.config, self.names[i]) for i, x in pieces.items()}
        return super().feed(pieces, ending=ending)


class SpeechSteps:
    """A decoder's steps from codes to sound, compiled once for all sessions.

    Early sound needs short steps, long ones cost less a second: a session's steps grow, by how much
    it has spoken. Sound comes `lookahead` codes and 160 ms behind; how codes arrive changes no
    sample. The cost of a step and a session's memory never grow, so sessions have no longest one.
    """

    def __init__(
        self, decoder: SpeechDecoder, *, hops: Sequence[int] | None = None,
        window: Window | None = None,
    ):  # fmt: skip
        """Args:
          hops: codes of a session's first step, of the second, ... and of all others; `growing` by
            default.
          window: see `FlowSteps`.

        Raises:
          InputError: hops that are no whole chunks, or a decoder without a vocoder that streams.
        """
        if not isinstance(decoder.vocoder, HiftVocoder):
            raise InputError(
                f'{decoder.vocoder.name}: it needs all of an utterance at once, so this codec '
                'cannot stream; give it flow/hift.pt, or decode without streaming'
            )
        self.decoder = decoder
        hops = growing(decoder.config.chunk) if hops is None else hops
        self.flow = FlowSteps(
            decoder.config, decoder.params, window=window, hops=hops, **decoder.options
        )
        self._blocks = [max(HELD, decoder.config.ratio * hop) for hop in self.flow.hops]

    def sessions(
        self, count: int = 1, *, voice: Voice | None = None, names: Sequence[str] | None = None,
        start: State | None = None,
    ) -> Speech:  # fmt: skip
        """New sessions that speak with one voice, by default the decoder's.

        Args:
          start: what `flow.start` gave for the voice, if that has been asked for; it is used up.

        Raises:
          InputError: a voice that does not fit the decoder.
        """
        voice = self.decoder.voice if voice is None else voice
        start = self.flow.start(count, voice) if start is None else start
        flow = self.flow.sessions(start, names)
        vocoder = self.decoder.vocoder.sessions(count, blocks=self._blocks, names=names)
        return Speech(flow, vocoder, self.decoder.config)
