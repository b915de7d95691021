"""MPEG audio (MP3): every frame is looked at, since no header can be trusted.

An MP3 file is frames and nothing else; what a player shows as its length is an estimate from the
first frame, or a count that an encoder left in a frame of its own ("Xing", "Info" or "VBRI") and
that covers neither what was appended nor what was lost. libsndfile reads what the count says. A
file of one stream gets a frame with the true count; others are left to FFmpeg.

The layout of the Xing, LAME and VBRI frames is as their encoders write them.
"""

import dataclasses
import struct

from mossjax.errors import InputError
from mossjax.infer.formats.block import by_ffmpeg
from mossjax.infer.formats.mpeg_frames import Frame, frames_of, parse, tag_size
from mossjax.infer.formats.view import Part, Survey, View

# No more can be half an hour of sound: 640 kbit/s, and pictures in the tags.
MOST_BYTES = 1 << 28
COUNTS = (b'Xing', b'Info')
ENCODERS = (b'LAME', b'Lavf', b'Lavc')  # that tell how many samples they added
PADDING = 1 << 12  # bytes behind the last frame that are not worth a word
DECODER_DELAY = 529  # samples by which decoders of layer 3 are late


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
    frames = list(frames_of(data))
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
        between += (frame.start - stop) * (not tag_size(data, stop))
        stop = frame.start + frame.size
    remarks = []
    if between:
        remarks.append(f'has {between} bytes between frames that are no sound; some may be lost')
    if parse(data, stop):
        remarks.append('ends within a frame, as after a recorder was stopped')
    else:
        while size := tag_size(data, stop):
            stop += size
        if len(data) - stop > PADDING:
            remarks.append(f'has {len(data) - stop} bytes behind its last frame that are no sound')
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
      frames: how many there should be, None if it does not say.
      delay, padding: samples to leave out at the start and at the end.
    """

    frames: int | None = None
    delay: int = 0
    padding: int = 0

    @classmethod
    def of(cls, data: bytes, frame: Frame) -> '_Count | None':
        at = 4 + _side_bytes(frame)
        if data[frame.start + 36 : frame.start + 40] == b'VBRI':
            return cls(int.from_bytes(data[frame.start + 50 : frame.start + 54], 'big'))
        if frame.layer != 3 or data[frame.start + at : frame.start + at + 4] not in COUNTS:
            return None
        body = data[frame.start + at : frame.start + frame.size]
        flags = int.from_bytes(body[4:8], 'big')
        if not flags & 1:
            return cls()
        count = int.from_bytes(body[8:12], 'big')
        # Behind the fields that the flags name: the encoder, and what it tells.
        extra = 12 + 4 * (flags >> 1 & 1) + 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)
        told = body[extra : extra + 24]
        if len(told) < 24 or not told.startswith(ENCODERS):
            return cls(count)
        trims = int.from_bytes(told[21:], 'big')
        return cls(count, trims >> 12, trims & 0xFFF)


def _counted(like: bytes, frames: int, delay: int, padding: int) -> tuple[bytes, int]:
    """Frames to put before others of a count, and how many samples they add at the start.

    Args:
      like: the header of one of the frames.
      delay, padding: samples to leave out at the start and at the end.
    """
    # At a bitrate that has room for it, without a checksum or padding; silent if it is played.
    header = bytes([like[0], like[1] | 1, 8 << 4 | like[2] & 0b1100, like[3]])
    frame = parse(header, 0)
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
