"""Audio files to waveforms and back, with every refusal made before any long work.

Reading is by content, not by name: `formats` finds what a file holds, libsndfile or FFmpeg decode
it. Whatever a file holds is read, or the file is refused.
"""

from collections.abc import Iterable, Iterator
import contextlib
import io
import itertools
import os
from pathlib import Path

import numpy as np

from mossjax import paths
from mossjax.errors import InputError
from mossjax.files import is_stream, replacing
from mossjax.infer.formats import reader
from mossjax.infer.formats.block import Block, Header, say
from mossjax.infer.formats.level import Level
from mossjax.infer.formats.source import Source
from mossjax.ops.resample import resample

# One frame of the log-mel: less than that holds no sound to speak of.
SHORTEST_SECONDS = 0.01
# 22,500 codes, more than half the positions of the released language model, and 115 MB as float32.
LONGEST_SECONDS = 30 * 60
# Lossy decoders overshoot full scale by a little; integers stored as floats by a factor of 32768.
LOUDEST = 8.0
# Suffix -> format and coding of libsndfile, for writing.
WRITTEN = {
    '.wav': ('WAV', 'PCM_16'), '.flac': ('FLAC', 'PCM_16'), '.ogg': ('OGG', 'VORBIS'),
    '.opus': ('OGG', 'OPUS'), '.mp3': ('MP3', 'MPEG_LAYER_III'),
}  # fmt: skip
WRITTEN_AT_ONCE = 1 << 16  # samples; libsndfile overflows its stack on longer writes of Vorbis


def read_header(path: str | os.PathLike | Source) -> Header:
    """What a file holds, without decoding it where anything else can tell.

    MP3 files are looked through frame by frame; formats that FFmpeg reads are decoded.

    Returns:
      rate and channels of the first recording in it, and the samples of all of them at that rate.

    Raises:
      InputError: it is missing, is not audio, is damaged, too short or too long.
    """
    source = Source.of(path)
    with source.opened() as view:
        found = reader.survey(view, source.name)
        first, seconds = None, 0.0
        for part in found.parts:
            header = reader.header(view, part, source.name) or _counted(
                reader.blocks(view, part, source.name), source.name
            )
            first = first or header
            seconds += header.frames / header.rate
            _check_longest(seconds, source.name)
    _check_shortest(seconds, source.name)
    _say(found.remarks, source.name)
    return Header(first.rate, first.channels, round(seconds * first.rate))


def load(path: str | os.PathLike | Source, rate: int) -> np.ndarray:
    """Reads one channel of an audio file at the rate wanted.

    The first channel is taken, not the mean, as the released speech tokenizer does; a warning says
    so if it is silent and another is not.

    Args:
      path: a file in any format that libsndfile or FFmpeg (with PyAV installed) reads, or a pipe.
        Any number of channels, rates from 4 to 768 kHz, 10 ms to 30 minutes.
      rate: wanted sample rate in Hz.

    Returns:
      (w,) float32 samples, full scale at 1. Of recordings that follow each other in a file, all.

    Raises:
      InputError: as `read_header`, and for samples that are not finite or not on a scale of 1.
    """
    source = Source.of(path)
    pieces: list[tuple[int, list[np.ndarray]]] = []
    level, seconds = Level(source.name), 0.0
    with source.opened() as view:
        found = reader.survey(view, source.name)
        for block in itertools.chain.from_iterable(
            reader.blocks(view, part, source.name) for part in found.parts
        ):
            if not pieces or pieces[-1][0] != block.rate:
                pieces.append((block.rate, []))
            pieces[-1][1].append(block.samples[:, 0].copy())
            level.add(block.samples)
            seconds += len(block.samples) / block.rate
            _check_longest(seconds, source.name)
    _check_shortest(seconds, source.name)
    _say(found.remarks, source.name)
    level.check()
    waves = []
    while pieces:
        found_rate, stretches = pieces.pop(0)
        wav = np.concatenate(stretches)
        check_samples(wav, source.name)
        waves.append(resample(wav, found_rate, rate))
    return waves[0] if len(waves) == 1 else np.concatenate(waves)


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


def check_writable_suffix(path: str | os.PathLike, name: str = '') -> None:
    """Whether `save` can write a file of this name. Pipes have none; they get WAV.

    Args:
      name: what the path is for, e.g. '--out', as the message calls it.

    Raises:
      InputError: the suffix is of no format that is written.
    """
    suffix = Path(path).suffix
    if not file_format(path):
        raise InputError(
            f'{name} {paths.printable(path)}: audio is written as {", ".join(WRITTEN)}, '.lstrip()
            + (f'not as {suffix}; ' if suffix else 'and the name must end so; ')
            + 'give such a name, and convert it with ffmpeg if another is needed'
        )


def save(path: str | os.PathLike, wav: np.ndarray, rate: int, comment: str = '') -> None:
    """Writes a mono file in the format of its suffix (WAV into a pipe), whole or not at all.

    WAV and FLAC hold 16-bit integers; what was read from such comes back unchanged.

    Args:
      path: file to make or replace; its folder is made if missing.
      wav: (w,) samples, full scale at 1; what lies beyond is clipped.
      rate: sample rate in Hz.
      comment: kept in the file, see `read_comment`.

    Raises:
      InputError: the suffix is of no such format, the format does not know the rate, the waveform
        is not one-dimensional or has samples that are not finite.
    """
    check_writable_suffix(path)
    wav = np.asarray(wav, np.float32)
    if wav.ndim != 1:
        raise InputError(f'{path}: a mono waveform has one axis, got shape {wav.shape}')
    check_samples(wav, path)
    with contextlib.closing(Encoder(path, rate, comment)) as encoder:
        encoder.write(wav)
    with replacing(path) as temporary:
        temporary.write_bytes(encoder.content.getbuffer())


class Encoder:
    """Samples to the bytes of a sound file, in the format that a name asks for.

    In memory, since libsndfile does not hand on what a full disk says.

    Attributes:
      content: the bytes, whole when it is closed; while it is not, left where it stands.
    """

    def __init__(self, path: str | os.PathLike, rate: int, comment: str = ''):
        """Raises:
          InputError: the format does not know the rate.
        """
        import soundfile

        kind, coding = file_format(path)
        self.content = io.BytesIO()
        try:
            self._file = soundfile.SoundFile(
                self.content, 'w', rate, channels=1, subtype=coding, format=kind
            )
        except soundfile.LibsndfileError as error:
            raise InputError(
                f'{path} cannot be written at {rate} Hz ({error.error_string.rstrip(".")}); '
                'write a .wav'
            ) from None
        if comment:
            self._file.comment = comment
        self.close = self._file.close

    def write(self, wav: np.ndarray) -> None:
        """(w,) more samples, full scale at 1."""
        pcm = pcm16(wav)
        for start in range(0, len(pcm), WRITTEN_AT_ONCE):
            self._file.write(pcm[start : start + WRITTEN_AT_ONCE])


def pcm16(wav: np.ndarray) -> np.ndarray:
    """Samples, full scale at 1, as int16; what lies beyond is clipped."""
    # 32768, the scale that reading divides by: 16-bit audio survives load and save unchanged.
    return np.clip(np.rint(wav * 32768.0), -32768, 32767).astype(np.int16)


def read_comment(path: str | os.PathLike) -> str:
    """The comment in an audio file; '' where there is none, or no such file."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            return file.comment
    except (soundfile.LibsndfileError, OSError):
        return ''


def file_format(path: str | os.PathLike) -> tuple[str, str] | None:
    """Format and coding of libsndfile for a file of this name, None if none is written."""
    return WRITTEN['.wav'] if is_stream(path) else WRITTEN.get(Path(path).suffix.lower())


def _say(remarks: Iterable[str], name: str) -> None:
    for remark in remarks:
        say(f'{name} {remark}')


def _counted(blocks: Iterator[Block], name: str) -> Header:
    first, seconds = None, 0.0
    for block in blocks:
        first = first or block
        seconds += len(block.samples) / block.rate
        _check_longest(seconds, name)
    if first is None:
        raise InputError(f'{name} holds no samples; record it again')
    return Header(first.rate, first.samples.shape[1], round(seconds * first.rate))


def _check_shortest(seconds: float, name: str) -> None:
    if seconds == 0:
        raise InputError(f'{name} holds no samples; record it again')
    if seconds < SHORTEST_SECONDS:
        raise InputError(
            f'{name} is {1000 * seconds:.1f} ms long, shorter than one frame of '
            f'{1000 * SHORTEST_SECONDS:.0f} ms; give a longer recording'
        )


def _check_longest(seconds: float, name: str) -> None:
    if seconds > LONGEST_SECONDS:
        raise InputError(
            f'{name} is longer than {LONGEST_SECONDS // 60} minutes, the limit; cut it into '
            'shorter files'
        )
