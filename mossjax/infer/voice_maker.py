"""A recording to a voice: prompt codes, prompt mel and speaker vector, as upstream has them."""

from collections.abc import Callable
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from absl import logging
import jax
import numpy as np

from mossjax.convert import codec_directory, codec_speaker, codec_tokenizer
from mossjax.convert.codec_speaker import campp_network
from mossjax.convert.fingerprint import CODEBOOK, SPEAKER
from mossjax.convert.source import DECODER
from mossjax.errors import InputError
from mossjax.infer import audio, voice
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


class Recording(NamedTuple):
    """What a voice is made of: (w,) samples in [-1, 1] at `rate` Hz, `name` for messages."""

    wave: np.ndarray
    rate: int
    name: str = 'the recording'


class VoiceMaker:
    """Makes voices with the networks of one codec directory."""

    def __init__(
        self, tokenizer: SpeechTokenizer | None, speaker: SpeakerEncoder | None, made_with: dict,
        *, ratio: int = RATIO, xvector_size: int = XVECTOR,
    ):  # fmt: skip
        """Args:
          tokenizer: None for voices without a prompt.
          speaker: None for voices with a zero vector, of a codec without speaker encoder, say.
          made_with: `convert.fingerprint.fingerprint` of the two.
          ratio, xvector_size: of the flow decoder.
        """
        self._tokenizer, self._speaker, self._made_with = tokenizer, speaker, made_with
        self._ratio, self._xvector_size = ratio, xvector_size

    @classmethod
    def open(
        cls, codec_dir: str | Path, *, prompt: bool = True, vector: bool = True,
        divisor: Divisor = own_frames,
    ) -> 'VoiceMaker':  # fmt: skip
        """Loads tokenizer and speaker encoder of a codec directory.

        Args:
          prompt, vector: which parts voices are to have. A codec without speaker encoder makes
            prompts; it is refused only where the vector is all that is wanted.

        Raises:
          InputError: files missing or damaged, see `check_codec`.
        """
        check_codec(codec_dir, prompt=prompt, vector=vector)
        speaker = None
        if vector and (codec_directory.has(codec_dir, codec_speaker.STEM) or not prompt):
            speaker = SpeakerEncoder(*codec_directory.open_campp(codec_dir), divisor=divisor)
        elif vector:
            logging.info('%s has no speaker encoder: voices are prompts alone', codec_dir)
        tokenizer = SpeechTokenizer.open(codec_dir) if prompt else None
        used = [CODEBOOK] * prompt + [SPEAKER] * (speaker is not None)
        return cls(tokenizer, speaker, codec_directory.prints(codec_dir, used))

    def make(self, wave: np.ndarray, rate: int, name: str = 'the recording') -> Voice:
        """The voice of a `Recording`.

        Raises:
          InputError: see `check_recording`.
        """
        check_recording(wave, rate, name)
        # Codes come of the recording itself, mel and vector of its copy at 24 kHz.
        fine = resample(wave, rate, features.RATE)
        codes, mel = np.zeros(0, np.int32), np.zeros((0, features.MELS), np.float32)
        if self._tokenizer is not None:
            codes = self._tokenizer.encode([resample(wave, rate, hearing.RATE)])[0]
            with jax.default_matmul_precision('highest'):
                mel = np.asarray(features.log_mel(fine))
        count = min(len(mel) // self._ratio, len(codes))
        xvector = np.zeros(self._xvector_size, np.float32)
        if self._speaker is not None:
            xvector = self._speaker(resample(fine, features.RATE, fbank.RATE))
        return Voice(codes[:count], mel[: self._ratio * count], xvector, self._made_with)


def read_recording(path: str | os.PathLike) -> Recording:
    """The first channel of an audio file of any rate.

    Raises:
      InputError: no audio, or nothing that a voice can be made of, see `check_recording`.
    """
    source = Source.of(path)  # a pipe gives its bytes once
    header = audio.read_header(source)
    _check_length(header.seconds, source.name)
    if header.channels > 1:
        logging.info(
            '%s has %d channels; the voice is the first one', source.name, header.channels
        )
    found = Recording(audio.load(source, header.rate), header.rate, source.name)
    check_recording(*found)
    return found


def check_recording(wave: np.ndarray, rate: int, name: str) -> None:
    """Refuses what no voice can be made of.

    Raises:
      InputError: it is shorter than a code, longer than 30 s, silent, or has samples that are not
        finite.
    """
    _check_length(len(wave) / rate, name)
    audio.check_samples(wave, name)
    if np.abs(wave).max() < SILENT:
        raise InputError(f'{name} is silent; give a recording in which someone speaks')


def check_codec(codec_dir: str | Path, *, prompt: bool = True, vector: bool = True) -> None:
    """Refuses a codec directory that lacks the networks which make a voice of a recording.

    Args:
      prompt, vector: see `VoiceMaker.open`.

    Raises:
      InputError: naming them.
    """
    has_speaker = codec_directory.has(codec_dir, codec_speaker.STEM)
    missing = []
    if prompt and not codec_directory.has_tokenizer(codec_dir):
        missing.append(f'the speech tokenizer ({", ".join(codec_tokenizer.FILES)})')
    if vector and not has_speaker and (missing or not prompt):  # prompts alone are voices too
        missing.append(f'the speaker encoder ({DECODER}/{codec_speaker.STEM}.onnx or .safetensors)')
    if missing:
        alone = ', or --only vector, which needs none' * (prompt and has_speaker)
        raise InputError(
            f'{codec_dir} lacks {" and ".join(missing)}, by which a recording becomes a voice; '
            'make a voice file of the recording with a codec that has all (mossjax voice'
            f'{alone}), and give that file as the voice'
        )


class Choice(NamedTuple):
    """A voice that was chosen and need not be made yet.

    Attributes:
      digest: gives a hash of all that it depends on. make: gives the voice.
    """

    digest: Callable[[], bytes]
    make: Callable[[], Voice]

    @classmethod
    def of(cls, made: Voice) -> 'Choice':
        return cls(made.digest, lambda: made)


def choose(path: str | os.PathLike, codec_dir: str | Path) -> Choice:
    """The voice in a file that `voice.save` wrote, or of a recording; opens no networks.

    Raises:
      InputError: it is neither, was made with another codec, or see `check_recording` and
        `check_codec`.
    """
    if voice.is_file(path):
        return Choice.of(voice.load(path, codec_dir))
    recording = read_recording(path)
    check_codec(codec_dir)

    def digest() -> bytes:
        found = hashlib.sha256(f'{recording.rate} '.encode() + recording.wave.tobytes())
        for file in codec_directory.weights(codec_dir, [codec_speaker.STEM], tokenizer=True):
            found.update(file.encode())
        return found.digest()

    return Choice(digest, lambda: VoiceMaker.open(codec_dir).make(*recording))


def open_voice(path: str | os.PathLike, codec_dir: str | Path) -> Voice:
    """The voice that `choose` finds.

    Raises:
      InputError: see there.
    """
    return choose(path, codec_dir).make()


def _check_length(seconds: float, name: str) -> None:
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
