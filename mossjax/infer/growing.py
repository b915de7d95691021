"""A sound file that grows while what it holds is being spoken."""

import contextlib
import os
from pathlib import Path
import stat
from types import TracebackType
import wave

import numpy as np

from mossjax.errors import InputError
from mossjax.files import room_for
from mossjax.infer import audio


class GrowingSound:
    """A mono file that takes its samples piece by piece and can be played meanwhile.

    It takes its name, and the place of what stood there, with the first samples; a WAV file is
    whole after each piece, in other formats the last fractions of a second come with the end. If
    the block ends with an error, other than Ctrl-C, nothing stays. A pipe gets all at the end.

        with GrowingSound('answer.wav', 24000) as sound:
            sound.write(wav)
    """

    def __init__(self, path: str | os.PathLike, rate: int):
        """Args:
          path: the suffix says the format, see `audio.WRITTEN`; its folder is made if missing.
          rate: in Hz.

        Raises:
          InputError: the suffix is of no such format.
        """
        audio.check_writable_suffix(path)
        self.path, self.rate, self.samples = Path(path), rate, 0
        self._pieces: list[np.ndarray] = []  # for a pipe
        self._sink = self._file = self._temporary = None

    def __enter__(self) -> 'GrowingSound':
        return self

    def write(self, wav: np.ndarray) -> None:
        """(w,) more samples, full scale at 1.

        Raises:
          InputError: samples that are not finite, or the disk is full.
        """
        if not len(wav):
            return
        audio.check_samples(wav, self.path)
        with room_for(self.path):
            if self._sink is None and not self._pieces:
                self._open()
            if self._sink is None:
                self._pieces.append(wav)
            else:
                self._sink.write(audio.pcm16(wav))
                self._file.flush()
            if self._temporary is not None:
                os.replace(self._temporary, self._real)
                self._temporary = None
        self.samples += len(wav)

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        spoilt = kind is not None and not issubclass(kind, KeyboardInterrupt)
        if self._pieces and not spoilt:
            audio.save(self.path, np.concatenate(self._pieces), self.rate)
        if self._sink is None:
            return
        with room_for(self.path) if not spoilt else contextlib.suppress(Exception):
            self._sink.close()
            self._file.close()
        if spoilt:
            Path(self._temporary or self._real).unlink(missing_ok=True)

    def _open(self) -> None:
        self._real = Path(os.path.realpath(self.path))
        self._real.parent.mkdir(parents=True, exist_ok=True)
        if self._real.exists() and not stat.S_ISREG(self._real.stat().st_mode):
            return
        self._temporary = self._real.with_name(f'.{os.getpid()}{self._real.suffix}')
        self._file = open(self._temporary, 'w+b')
        self._sink = _writer(self.path, self._file, self.rate)


def _writer(path: Path, file, rate: int):
    """What takes int16 samples by `write` and has `close`."""
    kind, coding = audio.file_format(path)
    if kind == 'WAV':
        return _Wav(file, rate)
    import soundfile

    try:
        return soundfile.SoundFile(file, 'w', rate, channels=1, subtype=coding, format=kind)
    except soundfile.LibsndfileError as error:
        raise InputError(
            f'{path} cannot be written at {rate} Hz ({error.error_string.rstrip(".")}); '
            'write a .wav'
        ) from None


class _Wav:
    """Its header says after each piece how long the file is by then."""

    def __init__(self, file, rate: int):
        self._wave = wave.open(file, 'wb')
        self._wave.setparams((1, 2, rate, 0, 'NONE', ''))
        self.close = self._wave.close

    def write(self, pcm: np.ndarray) -> None:
        self._wave.writeframes(pcm.astype('<i2').tobytes())
