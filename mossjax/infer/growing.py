"""A sound file that grows while what it holds is being spoken."""

import contextlib
import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO
import wave

import numpy as np

from mossjax.files import is_stream, replacing, room_for
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
        self._sink = self._file = self._grows = None
        self._opened = contextlib.ExitStack()

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
        if self._grows is not None:
            with room_for(self.path, unchanged=False):
                self._put(wav)
        elif self._pieces or is_stream(self.path):
            self._pieces.append(wav)
        else:
            with replacing(self.path) as temporary:
                self._file = self._opened.enter_context(open(temporary, 'w+b'))
                kind, _ = audio.file_format(self.path)
                self._sink = (_Wav if kind == 'WAV' else _Encoded)(
                    self._file, self.path, self.rate
                )
                self._opened.callback(self._sink.close)
                self._put(wav)
            self._grows = Path(os.path.realpath(self.path))
        self.samples += len(wav)

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        spoilt = kind is not None and not issubclass(kind, KeyboardInterrupt)
        if self._pieces and not spoilt:
            audio.save(self.path, np.concatenate(self._pieces), self.rate)
        try:
            with room_for(self.path, unchanged=False):
                self._opened.close()
        except Exception:
            if not spoilt:
                spoilt = True
                raise
        finally:
            if spoilt and self._grows is not None:
                self._grows.unlink(missing_ok=True)

    def _put(self, wav: np.ndarray) -> None:
        self._sink.write(wav)
        self._file.flush()


class _Wav:
    """Its header says after each piece how long the file is by then."""

    def __init__(self, file: BinaryIO, path: Path, rate: int):
        del path
        self._wave = wave.open(file, 'wb')
        self._wave.setparams((1, 2, rate, 0, 'NONE', ''))
        self.close = self._wave.close

    def write(self, wav: np.ndarray) -> None:
        self._wave.writeframes(audio.pcm16(wav).astype('<i2').tobytes())


class _Encoded:
    """What an encoder has made goes into the file, and what it changes in the end."""

    def __init__(self, file: BinaryIO, path: Path, rate: int):
        self._file, self._encoder, self._copied = file, audio.Encoder(path, rate), 0

    def write(self, wav: np.ndarray) -> None:
        self._encoder.write(wav)
        content = self._encoder.content
        at = content.tell()  # the encoder goes on from there
        content.seek(self._copied)
        self._copied += self._file.write(content.read())
        content.seek(at)

    def close(self) -> None:
        self._encoder.close()
        self._file.seek(0)
        self._file.write(self._encoder.content.getbuffer())
