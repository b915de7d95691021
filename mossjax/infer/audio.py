"""Audio files to waveforms and back, with every refusal made before any long work."""

import dataclasses
import os
import pathlib
import wave

import numpy as np

from mossjax.errors import InputError
from mossjax.files import replacing
from mossjax.ops.resample import resample

# One frame of the log-mel: less than that holds no sound to speak of.
SHORTEST_SECONDS = 0.01
# 22,500 codes, more than half the positions of the released language model, and 115 MB as float32.
LONGEST_SECONDS = 30 * 60
# Lossy decoders overshoot full scale by a little; integers stored as floats by a factor of 32768.
LOUDEST = 8.0


@dataclasses.dataclass(frozen=True)
class Header:
    """What an audio file says of itself."""

    rate: int  # Hz
    channels: int
    frames: int  # samples of each channel

    @property
    def seconds(self) -> float:
        return self.frames / self.rate


def read_header(path: str | os.PathLike) -> Header:
    """Opens a file without reading its samples.

    Raises:
      InputError: it is missing, is not audio, is too short or too long.
    """
    path = _existing(path)
    import soundfile

    try:
        info = soundfile.info(str(path))
    except TypeError:  # a name that ends in .raw: soundfile wants to be told the format
        raise InputError(
            f'{path} is headerless audio by its name; give a WAV, FLAC, OGG or MP3 file'
        ) from None
    except soundfile.LibsndfileError as error:
        raise InputError(
            f'{path} is not audio that can be read ({error.error_string.rstrip(".")}); '
            'give a WAV, FLAC, OGG or MP3 file'
        ) from None
    header = Header(info.samplerate, info.channels, info.frames)
    if header.frames == 0:
        raise InputError(f'{path} holds no samples; record it again')
    if header.seconds < SHORTEST_SECONDS:
        raise InputError(
            f'{path} is {1000 * header.seconds:.1f} ms long, shorter than one frame of '
            f'{1000 * SHORTEST_SECONDS:.0f} ms; give a longer recording'
        )
    if header.seconds > LONGEST_SECONDS:
        raise InputError(
            f'{path} is {header.seconds / 60:.0f} minutes long, the limit is '
            f'{LONGEST_SECONDS // 60} minutes; cut it into shorter files'
        )
    return header


def load(path: str | os.PathLike, rate: int) -> np.ndarray:
    """Reads one channel of an audio file at the rate wanted.

    The first channel is taken, not the mean, as the released speech tokenizer does.

    Args:
      path: any format libsndfile reads, any rate, any number of channels.
      rate: wanted sample rate in Hz.

    Returns:
      (w,) float32 samples, full scale at 1.

    Raises:
      InputError: as `read_header`, and for samples that are not finite or not on a scale of 1.
    """
    header = read_header(path)
    import soundfile

    try:
        channels, _ = soundfile.read(str(path), dtype='float32', always_2d=True)
    except soundfile.LibsndfileError as error:
        raise InputError(
            f'{path} breaks off while reading ({error.error_string.rstrip(".")}); '
            'copy or convert it again'
        ) from None
    wav = np.ascontiguousarray(channels[:, 0])
    check_samples(wav, path)
    return resample(wav, header.rate, rate)


def check_samples(wav: np.ndarray, name: str | os.PathLike) -> None:
    """Refuses samples that are not finite, or on another scale than [-1, 1]; says where."""
    finite = np.isfinite(wav)
    if not finite.all():
        raise InputError(
            f'{name} has a sample that is no number (the first at index {int(finite.argmin())}); '
            'export it again as 16-bit PCM'
        )
    peak = float(np.abs(wav).max(initial=0.0))
    if peak > LOUDEST:
        raise InputError(
            f'{name} reaches {peak:.0f} where full scale is 1; divide the samples '
            '(by 32768 if they were 16-bit integers)'
        )


def save(path: str | os.PathLike, wav: np.ndarray, rate: int) -> None:
    """Writes a mono 16-bit PCM WAV file, whole or not at all.

    Args:
      path: file to make or replace; its folder is made if missing.
      wav: (w,) samples, full scale at 1; what lies beyond is clipped.
      rate: sample rate in Hz.

    Raises:
      InputError: the waveform is not one-dimensional or has samples that are not finite.
    """
    wav = np.asarray(wav, np.float32)
    if wav.ndim != 1:
        raise InputError(f'{path}: a mono waveform has one axis, got shape {wav.shape}')
    check_samples(wav, path)
    # 32768, the scale that reading divides by: 16-bit audio survives load and save unchanged.
    pcm = np.clip(np.rint(wav * 32768.0), -32768, 32767).astype('<i2')
    with replacing(path) as temporary, wave.open(str(temporary), 'wb') as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm.tobytes())


def _existing(path: str | os.PathLike) -> pathlib.Path:
    path = pathlib.Path(path)
    if not path.exists():
        raise InputError(f'{path} does not exist; check the path')
    if path.is_dir():
        raise InputError(f'{path} is a folder; name the audio files in it')
    if not os.access(path, os.R_OK):
        raise InputError(f'{path} cannot be read; check its permissions')
    if path.stat().st_size == 0:
        raise InputError(f'{path} is empty; record or copy it again')
    return path
