"""FLAC streams, also several one behind the other: how many samples they hold.

The header's own count is 0 where the encoder wrote to a pipe or was killed, and belongs to the
first stream only where files were put together. The header of the last frame knows better: it
says at which sample it begins.

Source: RFC 9639, sections 8.2 (stream information), 9.1 (frame header) and 9.3 (its checksum).
"""

import re
from typing import NamedTuple

from mossjax.errors import InputError
from mossjax.infer.formats.block import by_ffmpeg, check_format
from mossjax.infer.formats.view import Part, Survey, View, several

STREAM = re.compile(rb'fLaC[\x00\x80]\x00\x00\x22')
INFORMATION = 42  # bytes up to the end of the stream information
# Bytes looked through for the last frame: first, and at most; none is longer than 16 MiB.
WINDOW, WIDEST = 1 << 18, 1 << 26
MOST_BLOCKS = 10_000  # of metadata
TORN = 'ends within a frame, as after a recorder was stopped'


def flac(view: View, name: str) -> Survey:
    """Every stream of the file under a header with the true count."""
    starts = list(view.find(STREAM))
    stops = [*starts[1:], view.size]
    parts, remarks = [], []
    for ends in zip(starts, stops, strict=True):
        part, torn = _part(view, *ends, name)
        parts.append(part)
        remarks += [TORN] * torn
    return several(parts, remarks)


def _part(view: View, start: int, stop: int, name: str) -> tuple[Part, bool]:
    """One stream, and whether its end was cut off where nothing told how long it should be."""
    head = view.at(start, INFORMATION)
    packed = int.from_bytes(head[18:26].ljust(8, b'\0'), 'big')
    rate, channels, said = packed >> 44, (packed >> 41 & 7) + 1, packed & (1 << 36) - 1
    check_format(rate, channels, name)
    block = int.from_bytes(head[10:12], 'big')
    last = _last_frame(view, _first_frame(view, start), stop, block)
    held, torn = said, False
    if last:
        torn = not said and not _is_whole(view.at(last.start, stop - last.start))
        held = last.begin if torn else last.end
    if held < said:
        raise InputError(
            f'{name} breaks off: its header counts {said / rate:.2f} s, there are '
            f'{held / rate:.2f} s; copy it again, or keep what is left: {by_ffmpeg(name)}'
        )
    head = head[:18] + (packed >> 36 << 36 | held).to_bytes(8, 'big') + head[26:]
    return Part(start + INFORMATION, stop, head, held if last else None), torn


def _first_frame(view: View, start: int) -> int:
    """The byte behind the metadata."""
    at = start + 4
    for _ in range(MOST_BLOCKS):
        header = view.at(at, 4)
        at += 4 + int.from_bytes(header[1:], 'big')
        if not header or header[0] & 0x80:
            break
    return at


class _Frame(NamedTuple):
    """start: byte. begin, end: its first sample and the one behind its last."""

    start: int
    begin: int
    end: int


def _last_frame(view: View, first: int, stop: int, block: int) -> _Frame | None:
    """The last frame of a stream, None if none is found.

    Args:
      first, stop: bytes between which the frames are.
      block: samples of all frames but the last, where the stream counts frames and not samples.
    """
    sync = view.at(first, 2)
    if sync not in (b'\xff\xf8', b'\xff\xf9'):
        return None
    size = WINDOW
    while True:
        start = max(first, stop - size)
        tail = view.at(start, stop - start)
        found = [
            _Frame(start + m.start(), *samples) for m in re.finditer(sync, tail)
            if (samples := _samples(tail[m.start() : m.start() + 16], block))
        ]  # fmt: skip
        # Two bytes like a frame's may be sound; that they also fit the frame before them may not.
        ends = {frame.end for frame in found} | {0}
        for frame in reversed(found):
            if frame.begin in ends:
                return frame
        if start == first or size >= WIDEST:
            return None
        size *= 4


def _is_whole(frame: bytes) -> bool:
    """Whether bytes are a frame with its checksum at the end, tags behind it left out."""
    frame = frame[:-128] if frame[-128:-125] == b'TAG' else frame
    crc = 0
    for byte in frame:
        crc = (crc << 8 ^ _CRC16[crc >> 8 ^ byte]) & 0xFFFF
    return crc == 0


def _samples(header: bytes, usual: int) -> tuple[int, int] | None:
    """The first sample and the one behind the last, from a frame's header; None if it is none."""
    if len(header) < 6:
        return None
    block, ones = header[2] >> 4, 8 - (header[4] ^ 0xFF).bit_length()
    if block == 0 or header[2] & 15 == 15 or ones in (1, 8):
        return None
    at = 4 + max(1, ones)  # a number coded as UTF-8 codes letters
    number = header[4] & 0x7F >> ones
    for byte in header[5:at]:
        number = number << 6 | byte & 0x3F
    extra = {6: 1, 7: 2}.get(block, 0)
    if extra:
        length = int.from_bytes(header[at : at + extra], 'big') + 1
    else:
        length = 192 if block == 1 else 576 << block - 2 if block < 6 else 256 << block - 8
    at += extra + {12: 1, 13: 2, 14: 2}.get(header[2] & 15, 0)
    if at >= len(header) or _crc8(header[:at]) != header[at]:
        return None
    begin = number if header[1] & 1 else number * usual
    return begin, begin + length


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc = _CRC8[crc ^ byte]
    return crc


def _table(polynomial: int, bits: int) -> list[int]:
    """The remainder of each byte."""
    table = []
    for byte in range(256):
        crc = byte << bits - 8
        for _ in range(8):
            crc = crc << 1 ^ polynomial * (crc >> bits - 1)
        table.append(crc & (1 << bits) - 1)
    return table


_CRC8, _CRC16 = _table(0x107, 8), _table(0x18005, 16)
