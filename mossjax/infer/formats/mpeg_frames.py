"""The frames of MPEG audio, layers 1 to 3, and the tags between them.

Sources: ISO/IEC 11172-3, 2.4.1.3 and 2.4.2.3 (frame header); 13818-3, 2.4.2.3 (half rates); ID3v2.4
main structure, 3.1; APEv2.
"""

from collections.abc import Iterator
import itertools
from typing import NamedTuple

from mossjax.infer.formats.view import NOT_ZERO, View

# kbit/s by index, for MPEG-1 layers 1, 2, 3 and for half rates layer 1 and layers 2, 3.
BITRATES = {
    (1, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}  # fmt: skip
RATES = {0b11: (44100, 48000, 32000), 0b10: (22050, 24000, 16000), 0b00: (11025, 12000, 8000)}
WINDOW = 1 << 16  # bytes in which the first frames are, behind what a broadcast was cut into
RUN = 4  # frames that touch each other are no chance
CONTAINERS = (b'RIFF', b'\x1a\x45\xdf\xa3', b'FLV', b'\0\0\1', b'OggS', b'fLaC')


class Frame(NamedTuple):
    """start, size: bytes. samples: of each channel. layer: 1 to 3. version: 2 at half rates."""

    start: int
    size: int
    rate: int
    channels: int
    samples: int
    layer: int
    version: int

    @property
    def kind(self) -> tuple[int, int, int, int]:
        return self.rate, self.channels, self.samples, self.layer


def frames_of(data: bytes) -> Iterator[Frame]:
    """All frames, whatever lies between them. The first of a run must be followed by another."""
    at, inside = 0, False
    while at < len(data):
        frame = parse(data, at)
        after = at + frame.size if frame else 0
        if frame and (inside or _goes_on(data, after, frame)):
            if after > len(data):
                return  # cut off
            yield frame
            at, inside = after, True
            continue
        inside = False
        skipped = tag_size(data, at)
        if skipped:
            at += skipped
            continue
        at = data.find(b'\xff', at + 1)
        if at < 0:
            return


def _goes_on(data: bytes, after: int, frame: Frame) -> bool:
    """Whether another frame like this one follows, or the end."""
    following = parse(data, after)
    if following:
        return following.kind == frame.kind
    return after == len(data) or tag_size(data, after) > 0


def parse(data: bytes, at: int) -> Frame | None:
    """The frame whose header stands at this byte; None if there is none."""
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] & 0xE0 != 0xE0:
        return None
    second, third = data[at + 1], data[at + 2]
    rates, layer = RATES.get(second >> 3 & 3), 4 - (second >> 1 & 3)
    index = third >> 4
    if rates is None or layer == 4 or index in (0, 15) or third >> 2 & 3 == 3:
        return None
    version = 1 if second >> 3 & 3 == 3 else 2
    rate, padding = rates[third >> 2 & 3], third >> 1 & 1
    bitrate = 1000 * BITRATES[version, layer][index]
    if layer == 1:
        samples, size = 384, (12 * bitrate // rate + padding) * 4
    else:
        samples = 576 if layer == 3 and version == 2 else 1152
        size = samples // 8 * bitrate // rate + padding
    channels = 1 if data[at + 3] >> 6 == 3 else 2
    return Frame(at, size, rate, channels, samples, layer, version)


def tag_size(data: bytes, at: int) -> int:
    """Bytes of the tag that stands here, 0 if there is none."""
    if data[at : at + 3] == b'TAG':
        return 128
    if data[at : at + 8] == b'APETAGEX':
        return 32 + int.from_bytes(data[at + 12 : at + 16], 'little')
    if data[at : at + 3] == b'ID3':
        return id3_size(data[at : at + 10])
    return 0


def id3_size(header: bytes) -> int:
    """Bytes of an ID3v2 tag from its first ten, 0 if they are none."""
    if len(header) < 10 or header[:3] != b'ID3' or any(byte & 0x80 for byte in header[6:10]):
        return 0
    size = 0
    for byte in header[6:10]:
        size = size << 7 | byte
    return 10 + size + 10 * (header[5] >> 4 & 1)


def looks_like(view: View) -> bool:
    """Whether the file begins with two frames, or has a run of them near its start."""
    start = next(view.find(NOT_ZERO), 0)
    if view.at(start, 12).startswith(CONTAINERS) or view.at(start + 4, 4) == b'ftyp':
        return False
    data = view.at(start, WINDOW)
    frames = list(itertools.islice(frames_of(data), RUN))
    touch = all(a.start + a.size == b.start for a, b in itertools.pairwise(frames))
    if not touch:
        return len(frames) > 1 and frames[0].start == 0 and frames[1].start == frames[0].size
    return len(frames) == RUN or bool(frames) and start + len(data) == view.size
