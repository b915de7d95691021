"""Recordings with wrong headers, made from right ones byte by byte."""

import io
import struct

import numpy as np
import soundfile

from tests.conftest import load_golden

RATE = 16_000


def question() -> np.ndarray:
    """"what is three plus four" as int16 (25280,) at 16 kHz.

    Its file says that it holds no samples; here its header is given the true count and libsndfile
    reads it as usual.
    """
    stream = bytearray(load_golden('audio/question_pipe.flac').read_bytes())
    stream[22:26] = struct.pack('>I', 25280)
    return soundfile.read(io.BytesIO(stream), dtype='int16')[0]


def encoded(wav: np.ndarray, rate: int = RATE, **settings) -> bytes:
    """A file by libsndfile; settings are soundfile's (format, subtype, ...)."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(
        buffer, 'w', rate, 1 if wav.ndim == 1 else wav.shape[1], **settings
    ) as file:
        for start in range(0, len(wav), 1 << 14):
            file.write(wav[start : start + (1 << 14)])
    return buffer.getvalue()


def decoded(content: bytes) -> np.ndarray:
    """The first channel of a good file, float32, by libsndfile in one read."""
    return soundfile.read(io.BytesIO(content), dtype='float32', always_2d=True)[0][:, 0]


def riff(
    pcm: bytes, size: int | None = None, whole: int | None = None, before: bytes = b'',
    after: bytes = b'', tag: bytes = b'RIFF', rate: int = RATE, channels: int = 1,
) -> bytes:
    """A WAV file of 16-bit samples.

    Args:
      size, whole: of the samples and of the file as the header has them; right by default.
      before, after: other chunks.
    """
    size = len(pcm) if size is None else size
    whole = 36 + len(pcm) + len(before) + len(after) if whole is None else whole
    fmt = struct.pack(
        '<4sIHHIIHH', b'fmt ', 16, 1, channels, rate, 2 * rate % 2**32, 2 * channels % 2**16, 16
    )
    head = tag + struct.pack('<I', whole) + b'WAVE' + fmt + before
    return head + b'data' + struct.pack('<I', size) + pcm + after


def patched(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


def flac_total(stream: bytes, total: int) -> bytes:
    """A FLAC stream whose header counts `total` samples (36 bits from byte 21)."""
    packed = int.from_bytes(stream[18:26], 'big') >> 36 << 36 | total
    return patched(stream, 18, packed.to_bytes(8, 'big'))


def id3(size: int) -> bytes:
    return b'ID3\x03\0\0' + bytes([0, 0, size >> 7, size & 127]) + bytes(size)


def said(caplog) -> str:
    """All that was warned of."""
    return '\n'.join(record.getMessage() for record in caplog.records)
