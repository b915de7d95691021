"""Recordings as Ogg Vorbis, the same bytes each time.

libsndfile gives each stream a random serial number; `renumbered` puts another one in its place.
"""

from __future__ import annotations

import io

import numpy as np

from mossjax.infer.formats.ogg import crc32

BLOCK = 1 << 16  # samples handed to libsndfile at once; long writes overflow its stack
HEADER = 27  # bytes of a page header before its segment table


def encode(wav: np.ndarray, rate: int, quality: float, serial: int = 0) -> bytes:
    """float32 (w,) at `rate` Hz as an Ogg Vorbis stream of a quality in [0, 1]."""
    import soundfile

    buffer = io.BytesIO()
    settings = {'format': 'OGG', 'subtype': 'VORBIS', 'compression_level': 1 - quality}
    with soundfile.SoundFile(buffer, 'w', rate, 1, **settings) as file:
        for start in range(0, len(wav), BLOCK):
            file.write(wav[start : start + BLOCK])
    return renumbered(buffer.getvalue(), serial)


def renumbered(stream: bytes, serial: int) -> bytes:
    """An Ogg stream with another serial number, and the checksums that belong to it.

    Source: RFC 3533, section 6 (page header: serial at byte 14, checksum at byte 22).
    """
    out, start = bytearray(stream), 0
    while start < len(out):
        segments = out[start + HEADER - 1]
        size = HEADER + segments + sum(out[start + HEADER : start + HEADER + segments])
        out[start + 14 : start + 18] = serial.to_bytes(4, 'little')
        out[start + 22 : start + 26] = bytes(4)
        checksum = crc32(out[start : start + size])
        out[start + 22 : start + 26] = checksum.to_bytes(4, 'little')
        start += size
    return bytes(out)
