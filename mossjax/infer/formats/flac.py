"""FLAC streams, also several one behind the other: how many samples they hold.

The header's own count is 0 where the encoder wrote to a pipe or was killed, and belongs to the
first stream only where files were put together. The header of the last frame knows better: it
says at which sample it begins.

Source: RFC 9639, sections 8.2 (stream information) and 9.1 (frame header).
"""

import re

from mossjax.errors import InputError
from mossjax.infer.formats.block import check_format
from mossjax.infer.formats.view import Part, Survey, View

STREAM = re.compile(rb'fLaC[\x00\x80]\x00\x00\x22')
INFORMATION = 42  # bytes up to the end of the stream information
# Bytes looked through for the last frame: first, and at most; none is longer than 16 MiB.
WINDOW, WIDEST = 1 << 18, 1 << 26
MOST_BLOCKS = 10_000  # of metadata


def flac(view: View, name: str) -> Survey:
    """Every stream of the file under a header with the true count."""
    starts = list(view.find(STREAM))
    stops = [*starts[1:], view.size]
    parts = tuple(_part(view, *ends, name) for ends in zip(starts, stops, strict=True))
    remark = f'holds {len(parts)} recordings one behind the other; all are read'
    return Survey(parts, (remark,) * (len(parts) > 1))


def _part(view: View, start: int, stop: int, name: str) -> Part:
    head = view.at(start, INFORMATION)
    packed = int.from_bytes(head[18:26].ljust(8, b'\0'), 'big')
    rate, channels, said = packed >> 44, (packed >> 41 & 7) + 1, packed & (1 << 36) - 1
    check_format(rate, channels, name)
    held = _held(view, _first_frame(view, start), stop, int.from_bytes(head[10:12], 'big'))
    if held is None:
        held = said
    if held < said:
        raise InputError(
            f'{name} breaks off: its header counts {said / rate:.2f} s, there are '
            f'{held / rate:.2f} s; copy it again'
        )
    head = head[:18] + (packed >> 36 << 36 | held).to_bytes(8, 'big') + head[26:]
    return Part(start + INFORMATION, stop, head, held or None)


def _first_frame(view: View, start: int) -> int:
    """The byte behind the metadata."""
    at = start + 4
    for _ in range(MOST_BLOCKS):
        header = view.at(at, 4)
        at += 4 + int.from_bytes(header[1:], 'big')
        if not header or header[0] & 0x80:
            break
    return at


def _held(view: View, first: int, stop: int, block: int) -> int | None:
    """Samples of each channel up to the end of the last frame; None if no frame is found.

    Args:
      first, stop: bytes between which the frames are.
      block: samples of all frames but the last, where the stream counts frames and not samples.
    """
    sync = view.at(first, 2)
    if sync not in (b'\xff\xf8', b'\xff\xf9'):
        return None
    size = WINDOW
    while True:
        begin = max(first, stop - size)
        tail = view.at(begin, stop - begin)
        found = (_samples(tail[m.start() : m.start() + 16], block) for m in re.finditer(sync, tail))
        frames = [frame for frame in found if frame]
        # Two bytes like a frame's may be sound; that they also fit the frame before them may not.
        ends = {end for _, end in frames} | {0}
        for here, end in reversed(frames):
            if here in ends:
                return end
        if begin == first or size >= WIDEST:
            return None
        size *= 4


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
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x107 * (crc >> 7)) & 0xFF
    return crc
