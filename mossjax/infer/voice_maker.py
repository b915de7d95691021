"""A recording to a voice: prompt codes, prompt mel and speaker vector, as upstream has them."""

from pathlib import Path

from absl import logging
import jax
import numpy as np

from mossjax.convert.codec_speaker import campp_network, has_speaker, open_campp
from mossjax.convert.fingerprint import fingerprint
from mossjax.errors import InputError
from mossjax.infer import audio
from mossjax.infer.formats.source import Source
from mossjax.infer.speech_tokenizer import SpeechTokenizer
from mossjax.infer.voice import Voice
from mossjax.models.flow import mel as features
from mossjax.models.speaker import fbank
from mossjax.models.speaker.blocks import Divisor, own_frames
from mossjax.models.speaker.config import CamppConfig
from mossjax.models.tokenizer import mel as hearing
from mossjax.ops.resample import resample

RATIO, XVECTOR = 4, 192  # mel frames of a code; numbers of a speaker vector
SHORTEST, LONGEST = RATIO * features.HOP / features.RATE, 30.0  # seconds
SILENT = 1e-3  # peak; -60 dB of full scale


class SpeakerEncoder:
    """CAM++ with its weights: who speaks in a recording."""

    def __init__(self, config: CamppConfig, params: dict, *, divisor: Divisor = own_frames):
        """`divisor`: how the last segment is averaged, see `models.speaker.blocks`."""
        self.config = config
        self.params = jax.tree.map(jax.numpy.asarray, params)
        self._network = campp_network(config, divisor=divisor)
        self._run = jax.jit(self._embed)

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        """(w,) at 16 kHz, 80 ms or more -> (192,) float32, of any length."""
        frames = fbank.frame_count(len(wave))
        # Few programs: lengths of 1, 2, 4, ... seconds.
        size = fbank.RATE
        while size < len(wave):
            size *= 2
        padded = np.pad(np.asarray(wave, np.float32), (0, size - len(wave)))
        return np.asarray(self._run(self.params, padded[None], np.array([frames])))[0]

    def _embed(self, params, wave, frames):
        with jax.default_matmul_precision('highest'):
            banks = fbank.fbank(wave)
            exists = (jax.numpy.arange(banks.shape[1]) < frames[:, None])[..., None]
            banks = jax.numpy.where(exists, banks, 0)
            mean = banks.sum(axis=1, keepdims=True) / frames[:, None, None]
            return self._network.bind(params)(banks - mean, frames)


class VoiceMaker:
    """Makes voices with the networks of one codec directory."""

    def __init__(
        self, tokenizer: SpeechTokenizer, speaker: SpeakerEncoder | None, made_with: dict,
        *, ratio: int = RATIO, xvector_size: int = XVECTOR,
    ):  # fmt: skip
        """Args:
          speaker: None for a codec without one; its voices have a zero vector.
          made_with: `convert.fingerprint.fingerprint` of the codec.
          ratio, xvector_size: of the flow decoder.
        """
        self._tokenizer, self._speaker, self._made_with = tokenizer, speaker, made_with
        self._ratio, self._xvector_size = ratio, xvector_size

    @classmethod
    def open(cls, codec_dir: str | Path, *, divisor: Divisor = own_frames) -> 'VoiceMaker':
        """Loads tokenizer and speaker encoder of a codec directory.

        Raises:
          InputError: files missing or damaged.
        """
        tokenizer, speaker = SpeechTokenizer.open(codec_dir), None
        if has_speaker(codec_dir):
            speaker = SpeakerEncoder(*open_campp(codec_dir), divisor=divisor)
        else:
            logging.info('%s has no speaker encoder: voices are prompts alone', codec_dir)
        return cls(tokenizer, speaker, fingerprint(codec_dir))

    def read(self, path: str | Path) -> Voice:
        """The voice of an audio file of any rate, its first channel.

        Raises:
          InputError: no audio, shorter than a code, longer than 30 s, or silent.
        """
        source = Source.of(path)  # a pipe gives its bytes once
        header = audio.read_header(source)
        self._check_length(header.seconds, source.name)
        if header.channels > 1:
            logging.info(
                '%s has %d channels; the voice is the first one', source.name, header.channels
            )
        return self.make(audio.load(source, header.rate), header.rate, source.name)

    def make(self, wave: np.ndarray, rate: int, name: str = 'the recording') -> Voice:
        """The voice of (w,) samples at `rate` Hz in [-1, 1].

        Raises:
          InputError: as of `read`.
        """
        self._check_length(len(wave) / rate, name)
        audio.check_samples(wave, name)
        if np.abs(wave).max() < SILENT:
            raise InputError(f'{name} is silent; give a recording in which someone speaks')
        # Codes come of the recording itself, mel and vector of its copy at 24 kHz.
        codes = self._tokenizer.encode([resample(wave, rate, hearing.RATE)])[0]
        fine = resample(wave, rate, features.RATE)
        with jax.default_matmul_precision('highest'):
            mel = np.asarray(features.log_mel(fine))
        count = min(len(mel) // self._ratio, len(codes))
        if self._speaker is None:
            xvector = np.zeros(self._xvector_size, np.float32)
        else:
            xvector = self._speaker(resample(fine, features.RATE, fbank.RATE))
        return Voice(codes[:count], mel[: self._ratio * count], xvector, self._made_with)

    def _check_length(self, seconds: float, name: str) -> None:
        if seconds < SHORTEST:
            raise InputError(
                f'{name} is {1000 * seconds:.0f} ms long, a code lasts {1000 * SHORTEST:.0f} ms; '
                'give a few seconds of speech'
            )
        if seconds > LONGEST:
            raise InputError(
                f'{name} is {seconds:.1f} s long; a voice is made of {LONGEST:.0f} s at most. Cut '
                'out a few seconds in which one person speaks'
            )
