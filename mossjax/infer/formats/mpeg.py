"""MPEG audio (MP3): every frame is looked at, since no header can be trusted.

An MP3 file is frames and nothing else; what a player shows as its length is an estimate from the
first frame, or a count that an encoder left in a frame of its own ("Xing", "Info" or "VBRI") and
that covers neither what was appended nor what was lost. libsndfile reads what the count says. A
file of one stream gets a frame with the true count; others are left to FFmpeg.

Sources: ISO/IEC 11172-3, 2.4.1.3 and 2.4.2.3 (frame header); 13818-3 (half rates); the layout of
the Xing, LAME and VBRI frames as their encoders write them.
"""

from collections.abc import Iterator
import dataclasses
import itertools
import re
import struct
from typing import NamedTuple

from mossjax.errors import InputError
from mossjax.infer.formats.block import by_ffmpeg
from mossjax.infer.formats.view import Part, Survey, View

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
# No more can be half an hour of sound: 640 kbit/s, and pictures in the tags.
MOST_BYTES = 1 << 28
WINDOW = 1 << 16  # bytes in which the first frames are, behind what a broadcast was cut into
RUN = 4  # frames that touch each other are no chance
CONTAINERS = (b'RIFF', b'\x1a\x45\xdf\xa3', b'FLV', b'\0\0\1', b'OggS', b'fLaC')
NOT_ZERO = re.compile(rb'[^\0]')
COUNTS = (b'Xing', b'Info')
DECODER_DELAY = 529  # samples by which decoders of layer 3 are late


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


def mpeg(view: View, name: str) -> Survey:
    """The one part of a file of MPEG audio.

    Raises:
      InputError: it is larger than half an hour can be, or frames that its count names are gone.
    """
    if view.size > MOST_BYTES:
        raise InputError(
            f'{name} has {view.size >> 20} MiB, more than the longest recording that is read; '
            'cut it into shorter files'
        )
    data = view.at(0, view.size)
    frames = list(_frames(data))
    if not frames:
        return Survey((Part(0, view.size),))
    first, count = frames[0], _Count.of(data, frames[0])
    sound = frames[1:] if count else frames
    held = sum(frame.samples for frame in sound)
    if count and (count.frames or 0) > len(sound) + 1:
        raise InputError(
            f'{name} breaks off or has gaps: its header counts '
            f'{count.frames * first.samples / first.rate:.2f} s, there are '
            f'{held / first.rate:.2f} s; copy it again, or keep what is left: {by_ffmpeg(name)}'
        )
    trims = (count.delay, count.padding) if count else (0, 0)
    if count and (count.frames or 0) < len(sound) - 1:  # it does not know where the end is
        trims = (count.delay, 0)
    remarks, why = _remarks(data, frames), _why_not_one(data, frames)
    skip = 0
    if first.layer == 3 and not why:
        head, skip = _counted(data[first.start : first.start + 4], len(sound), *trims)
    else:
        head, sound = b'', frames
    # FFmpeg and libmpg123 both take the delay of decoders off where the encoder's is known.
    if any(trims):
        held -= trims[0] + DECODER_DELAY + max(0, trims[1] - DECODER_DELAY)
    head += b''.join(data[frame.start : frame.start + frame.size] for frame in sound)
    return Survey((Part(0, 0, head, max(0, held), why, skip),), remarks)


def _remarks(data: bytes, frames: list[Frame]) -> tuple[str, ...]:
    """What is left out, but for tags."""
    stop, between = frames[0].start, 0
    for frame in frames:
        between += (frame.start - stop) * (not _tag(data, stop))
        stop = frame.start + frame.size
    remarks = []
    if between:
        remarks.append(f'has {between} bytes between frames that are no sound; some may be lost')
    if _parse(data, stop):
        remarks.append('ends within a frame, as after a recorder was stopped')
    return tuple(remarks)


def _why_not_one(data: bytes, frames: list[Frame]) -> str:
    """Why the frames are not one stream of one format; '' if they are."""
    if len({frame.kind for frame in frames}) > 1:
        return 'it changes its rate or its channels on the way'
    if any(_Count.of(data, frame) for frame in frames[1:]):
        return 'it is several MP3 files one behind the other'
    return ''


@dataclasses.dataclass(frozen=True)
class _Count:
    """A frame that holds no sound but what an encoder knew of the others.

    Attributes:
      at: byte of the frame at which its name stands.
      frames: how many there should be, None if it does not say.
      delay, padding: samples to leave out at the start and at the end.
    """

    at: int
    frames: int | None = None
    delay: int = 0
    padding: int = 0

    @classmethod
    def of(cls, data: bytes, frame: Frame) -> '_Count | None':
        at = 4 + _side_bytes(frame)
        if data[frame.start + 36 : frame.start + 40] == b'VBRI':
            return cls(at, int.from_bytes(data[frame.start + 50 : frame.start + 54], 'big'))
        if frame.layer != 3 or data[frame.start + at : frame.start + at + 4] not in COUNTS:
            return None
        body = data[frame.start + at : frame.start + frame.size]
        flags = int.from_bytes(body[4:8], 'big')
        count = int.from_bytes(body[8:12], 'big') if flags & 1 else None
        if count is None:
            return cls(at)
        # Behind the fields that the flags name: nine letters of an encoder's name, then its own.
        extra = 12 + 4 * (flags >> 1 & 1) + 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1) + 21
        trims = int.from_bytes(body[extra : extra + 3].ljust(3, b'\0'), 'big')
        return cls(at, count, trims >> 12, trims & 0xFFF)


def _counted(like: bytes, frames: int, delay: int, padding: int) -> tuple[bytes, int]:
    """Frames to put before others of a count, and how many samples they add at the start.

    Args:
      like: the header of one of the frames.
      delay, padding: samples to leave out at the start and at the end.
    """
    # At a bitrate that has room for it, without a checksum or padding; silent if it is played.
    header = bytes([like[0], like[1] | 1, 8 << 4 | like[2] & 0b1100, like[3]])
    frame = _parse(header, 0)
    silence = b''
    if not delay + padding:
        # libmpg123 takes the delay of decoders off the start of what is counted. Here that would
        # be sound, so a silent frame goes before it.
        silence, frames = header.ljust(frame.size, b'\0'), frames + 1
    told = b'Xing' + struct.pack('>II', 1, frames)
    if not silence:
        told += b'LAME'.ljust(21, b'\0') + (delay << 12 | padding).to_bytes(3, 'big')
    count = (header + bytes(_side_bytes(frame)) + told).ljust(frame.size, b'\0')
    return count + silence, frame.samples - DECODER_DELAY if silence else 0


def _side_bytes(frame: Frame) -> int:
    """Bytes of side information, which a count stands behind."""
    return {(1, 1): 17, (1, 2): 32, (2, 1): 9, (2, 2): 17}[frame.version, frame.channels]


def _frames(data: bytes) -> Iterator[Frame]:
    """All frames, whatever lies between them. The first of a run must be followed by another."""
    at, inside = 0, False
    while at < len(data):
        frame = _parse(data, at)
        after = at + frame.size if frame else 0
        if frame and (inside or _goes_on(data, after, frame)):
            if after > len(data):
                return  # cut off
            yield frame
            at, inside = after, True
            continue
        inside = False
        skipped = _tag(data, at)
        if skipped:
            at += skipped
            continue
        at = data.find(b'\xff', at + 1)
        if at < 0:
            return


def _goes_on(data: bytes, after: int, frame: Frame) -> bool:
    """Whether another frame like this one follows, or the end."""
    following = _parse(data, after)
    if following:
        return following.kind == frame.kind
    return after == len(data) or _tag(data, after) > 0


def _parse(data: bytes, at: int) -> Frame | None:
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


def _tag(data: bytes, at: int) -> int:
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
    frames = list(itertools.islice(_frames(data), RUN))
    touch = all(a.start + a.size == b.start for a, b in itertools.pairwise(frames))
    if not touch:
        return len(frames) > 1 and frames[0].start == 0 and frames[1].start == frames[0].size
    return len(frames) == RUN or bool(frames) and start + len(data) == view.size
