"""Formats that FFmpeg alone reads: several files behind each other are told apart, ends are seen.

Most of them go on with the next frame; MP4, WMA and AMR would be read up to the end of the first
file only.

Sources: ISO/IEC 14496-12, 4.2 (boxes); RFC 8794, 4 to 6 (EBML) and RFC 9559, 5 (Matroska);
Microsoft's Advanced Systems Format specification, 10.1 and 3.2; RFC 4867, 5.1 (AMR).
"""

import re
import struct

from mossjax.errors import InputError
from mossjax.infer.formats.block import by_ffmpeg
from mossjax.infer.formats.view import Part, Survey, View, several

WMA = bytes.fromhex('3026b2758e66cf11a6d900aa0062ce6c')
WMA_PROPERTIES = bytes.fromhex('a1dcab8c47a9cf118ee400c00c205365')
AMR = re.compile(rb'#!AMR(-WB)?\n')
EBML, SEGMENT, CLUSTER = b'\x1a\x45\xdf\xa3', b'\x18\x53\x80\x67', b'\x1f\x43\xb6\x75'
VOC = b'Creative Voice File'
MOST_ELEMENTS = 2_000_000
CUT = 'ends within a block, as after a recorder or a copy was stopped; it is read to its end'


def split(view: View, name: str) -> Survey:
    """One part for each file that was put in.

    Raises:
      InputError: it is shorter than its header says.
    """
    start, remark = view.at(0, 32), ''
    starts = [0]
    if start[4:8] == b'ftyp':
        starts, remark = _boxes(view)
    elif start.startswith(EBML):
        remark = _elements(view)
    elif start.startswith(WMA):
        starts = list(view.find(re.compile(re.escape(WMA))))
    elif AMR.match(start):
        starts = list(view.find(AMR))
    stops = [*starts[1:], view.size]
    # libsndfile reads the names of blocks in it as sound.
    why = 'its blocks need FFmpeg' if start.startswith(VOC) else ''
    parts = [Part(*ends, ffmpeg=why) for ends in zip(starts, stops, strict=True)]
    if start.startswith(WMA):
        for part in parts:
            _check_wma(view, part, name)
    return several(parts, [remark] if remark else [])


def _boxes(view: View) -> tuple[list[int], str]:
    """Where MP4 files begin among the outermost boxes, and a remark if the last one is torn."""
    starts, at = [], 0
    for _ in range(MOST_ELEMENTS):
        header = view.at(at, 16)
        size = int.from_bytes(header[:4], 'big')
        if size == 1:
            size = int.from_bytes(header[8:16], 'big')
        if header[4:8] == b'ftyp':
            starts.append(at)
        if size < 8:  # 0: up to the end
            break
        at += size
    return starts, CUT if at > view.size else ''


def _elements(view: View) -> str:
    """A remark if an element of a Matroska or WebM file is torn."""
    at = ends = 0
    for _ in range(MOST_ELEMENTS):
        header = view.at(at, 12).ljust(12, b'\0')
        name = header[: 9 - header[0].bit_length()]
        if at >= view.size or len(name) > 4:
            break
        width = 9 - header[len(name)].bit_length()
        largest = (1 << 7 * width) - 1  # stands for "unknown", as of recordings that go on
        size = int.from_bytes(header[len(name) : len(name) + width], 'big') & largest
        at += len(name) + width
        if size != largest:
            ends = max(ends, at + size)
        if name not in (SEGMENT, CLUSTER):  # what is in those is looked at
            at += size
    return CUT if ends > view.size else ''


def _check_wma(view: View, part: Part, name: str) -> None:
    at = next(view.find(re.compile(re.escape(WMA_PROPERTIES)), part.start, part.stop), None)
    fields = b'' if at is None else view.at(at + 40, 52)
    if len(fields) < 52:
        return
    size, (live,) = struct.unpack('<Q', fields[:8])[0], struct.unpack('<I', fields[48:])
    if not live & 1 and size > part.stop - part.start:
        raise InputError(
            f'{name} breaks off: its header counts {size} bytes, there are '
            f'{part.stop - part.start}; copy it again, or keep what is left: {by_ffmpeg(name)}'
        )
