"""A codec directory to what a dialogue partner hears and speaks with."""

from collections.abc import Callable, Sequence
import functools
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.convert import codec_directory, codec_tokenizer, codec_vocoder
from mossjax.convert.codec_flow import STEM
from mossjax.errors import InputError
from mossjax.infer.speech_decoder import SpeechDecoder
from mossjax.infer.speech_stream import SpeechSteps
from mossjax.infer.speech_tokenizer import SpeechTokenizer
from mossjax.infer.streaming import Session
from mossjax.infer.vocode_stream import streaming_stem
from mossjax.infer.vocoder import HiftVocoder
from mossjax.infer.voice import Voice

VOICES = 8  # whose prompts are kept as heard


class Codec(NamedTuple):
    """What hears and what speaks; None where it was not opened."""

    ears: SpeechTokenizer | None
    decoder: SpeechDecoder | None

    def mouth(self) -> 'StreamingMouth | WholeMouth | None':
        """What speaks while codes come, as far as the vocoder can; of a codec that `streams`."""
        if self.decoder is None:
            return None
        if isinstance(self.decoder.vocoder, HiftVocoder):
            return StreamingMouth(self.decoder)
        return WholeMouth(self.decoder.decode_many)


class Utterance(Protocol):
    """Something that is being said."""

    def feed(self, codes: np.ndarray) -> np.ndarray:
        """(n,) more codes -> (w,) samples at 24 kHz, as many as are known by now."""

    def finish(self) -> np.ndarray:
        """The rest."""


class Mouth(Protocol):
    """Begins utterances, in one's own voice or another."""

    def begin(self, voice: Voice | None = None) -> Utterance: ...


class StreamingMouth:
    """Speaks while codes come."""

    def __init__(self, decoder: SpeechDecoder, hops: Sequence[int] | None = None):
        """Args:
          hops: see `SpeechSteps`.

        Raises:
          InputError: see `SpeechSteps`.
        """
        self.steps = SpeechSteps(decoder, hops=hops)
        self._starts = functools.lru_cache(VOICES)(lambda voice: self.steps.flow.start(1, voice))
        self._copied = jax.jit(lambda state: jax.tree.map(jnp.copy, state))

    def begin(self, voice: Voice | None = None) -> Session:
        """As `Mouth`. A voice's prompt is heard once: it takes longer than the first sound may.

        Raises:
          InputError: a voice that does not fit.
        """
        voice = self.steps.decoder.voice if voice is None else voice
        start = self._copied(self._starts(voice))
        return Session(self.steps.sessions(voice=voice, start=start))

    def warm(self) -> None:
        """Compiles what utterances of any length need, by speaking some that end in every step."""
        lookahead, said = self.steps.decoder.config.lookahead, 0
        for hop in self.steps.flow.hops:
            for length in (said + 1, said + hop + lookahead):
                utterance = self.begin()
                utterance.feed(np.zeros(length, np.int32))
                utterance.finish()
            said += hop


class WholeMouth:
    """Speaks when all codes are there: what a codec without a streaming vocoder can do."""

    def __init__(self, decode: Callable[..., list[np.ndarray]]):
        """Args:
          decode: as `SpeechDecoder.decode_many`.
        """
        self._decode = decode

    def begin(self, voice: Voice | None = None) -> '_Held':
        """As `Mouth`."""
        return _Held(self._decode, {} if voice is None else {'voice': voice})

    def warm(self) -> None:
        """Compiles what short utterances need."""
        self._decode([np.zeros(8, np.int32)])


class _Held:
    def __init__(self, decode: Callable, options: dict):
        self._decode, self._options = decode, options
        self._codes: list[np.ndarray] = []

    def feed(self, codes: np.ndarray) -> np.ndarray:
        self._codes.append(np.asarray(codes, np.int32))
        return np.zeros(0, np.float32)

    def finish(self) -> np.ndarray:
        codes = np.concatenate([np.zeros(0, np.int32), *self._codes])
        return self._decode([codes], **self._options)[0] if len(codes) else np.zeros(0, 'f')


def open_codec(
    codec_dir, codes: int, hears: bool = True, speaks: bool = True, voice: Voice | None = None,
    streams: bool = False,
) -> Codec:
    """A codec directory, for a model that knows `codes` codes.

    Args:
      hears, speaks: which of them are opened; the other is None.
      voice: who speaks, see `SpeechDecoder.open`.
      streams: the decoder is for a `Mouth`: the one that learned to speak in chunks, where there
        is one and a vocoder that streams.

    Raises:
      InputError: files missing or damaged, a codec with other codes, or a voice that does not fit.
    """
    if speaks and not codec_directory.has_decoder(codec_dir):
        raise InputError(
            f'{codec_dir} has no folder flow/, the decoder that spoken replies need; a codec whose '
            'training left it out can hear, for written replies'
        )
    if hears and not codec_directory.has_tokenizer(codec_dir):
        raise InputError(
            f'{codec_dir} lacks the speech tokenizer ({", ".join(codec_tokenizer.FILES)}), which '
            'hears recordings; ask in writing (--text), or take a codec that has it'
        )
    ears = SpeechTokenizer.open(codec_dir) if hears else None
    stem = STEM
    if speaks and streams and codec_directory.has(codec_dir, codec_vocoder.STEM):
        stem = streaming_stem(codec_dir, codec_directory.open_config(codec_dir))
    decoder = SpeechDecoder.open(codec_dir, voice=voice, stem=stem) if speaks else None
    _check_codes(codec_dir, codes, ears, decoder)
    return Codec(ears, decoder)


def _check_codes(codec_dir, codes: int, ears, decoder) -> None:
    """A flow decoder may have rows to spare, a tokenizer may not say what the model cannot read."""
    heard, spoken = ears and ears.config.codes, decoder and decoder.config.vocab_size
    if (ears and heard > codes) or (decoder and spoken < codes):
        sizes = f'the speech tokenizer has {heard} codes, ' * bool(ears)
        sizes += f'the decoder {spoken}, ' * bool(decoder)
        raise InputError(
            f'{codec_dir}: {sizes}the language model {codes}; take the codec it was trained with'
        )
