"""Formats that are lists of chunks with a size each (WAV, AIFF, CAF): where samples really end.

A recorder or a pipe that could not go back leaves the size of the samples at 0 or at its largest
value, one that was killed leaves an old one. Each recording is handed on under a header that says
what is there; other chunks are left out.

Rules: sizes that promise more than the file has are read to its end, and this is said unless the
size is one of those that stand for "unknown". Bytes behind the samples are more chunks, another
recording, padding or tags; what is none of these is sound if the file's own size includes it, and
else the file is refused, since nobody can tell sound from rubbish.
"""

from collections.abc import Callable
import dataclasses
import re
import struct
from typing import NamedTuple

from mossjax.errors import InputError
from mossjax.infer.formats.block import by_ffmpeg
from mossjax.infer.formats.view import NOT_ZERO, Part, Survey, View, several

# 32-bit sizes from here on stand for "unknown": sox, arecord and ffmpeg each have their own.
UNKNOWN_32, UNKNOWN_64 = 0x7FFF0000, 1 << 62
# The first bytes of recordings that may follow another: RIFF and its kin, W64, AIFF, CAF.
NEXT = re.compile(
    rb'(?:RIFF|RIFX|RF64|BW64)[\0-\xff]{4}WAVE|riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb'
    rb'|FORM[\0-\xff]{4}AIF[FC]|caff\0[\1\2]\0\0[a-z]{4}'
)
PADDING = (b'TAG', b'APETAGEX', b'ID3', b'LYRICSBEGIN')  # tags of other formats, put behind
TEXTS = (b'LIST', b'id3 ', b'ID3 ', b'bext', b'iXML', b'_PMX', b'cue ', b'info')
MOST_FMT = 4096  # bytes of a description of samples
MOST_CHUNKS = 10_000


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a format writes its chunks: name, size, content, and zeros up to a multiple of `align`.

    Attributes:
      name: bytes of the name; the first four are letters.
      size: struct format of the size.
      included: whether the size counts name and size too.
    """

    name: int
    size: str
    align: int
    included: bool = False

    @property
    def header(self) -> int:
        return self.name + struct.calcsize(self.size)

    @property
    def unknown(self) -> int:
        return UNKNOWN_64 if struct.calcsize(self.size) == 8 else UNKNOWN_32


LITTLE, BIG = Kind(4, '<I', 2), Kind(4, '>I', 2)
WIDE = Kind(16, '<Q', 8, included=True)
CORE = Kind(4, '>Q', 1)


@dataclasses.dataclass(frozen=True)
class Chunk:
    """name: its letters. start: byte of its content. size: of its content, as declared."""

    name: bytes
    start: int
    size: int


class Found(NamedTuple):
    """One recording of a file, what is to be said of it, and the byte where another begins."""

    part: Part
    remarks: tuple[str, ...] = ()
    following: int | None = None


class End(NamedTuple):
    """The byte behind the last sample, a remark or '', and where another recording begins."""

    stop: int
    remark: str = ''
    following: int | None = None


def each(one: Callable[[View, int, str], Found], view: View, name: str) -> Survey:
    """All recordings of a file, each found by `one` at the byte where it begins."""
    parts, remarks, start = [], [], 0
    while start is not None:
        part, said, start = one(view, start, name)
        parts.append(part)
        remarks += filter(None, said)
    return several(parts, remarks)


def end(view: View, data: Chunk, kind: Kind, ends: int | None, name: str) -> End:
    """Where the samples of a chunk end.

    Args:
      ends: where the file should end by its own account; None if it gives none.

    Raises:
      InputError: what follows may be sound or not.
    """
    if data.size == 0 and data.start < view.size:
        only_texts, following = _list(view, data.start, kind)
        if only_texts:
            return End(data.start, following=following)
    if data.size == 0 or data.start + data.size > view.size:
        following = next(view.find(NEXT, data.start), None)
        stop = view.size if following is None else following
        said = data.size < kind.unknown and stop > data.start
        return End(stop, cut(data.size, stop - data.start) if said else '', following)
    stop = data.start + data.size
    for behind in (stop, stop + -stop % kind.align):
        good, following = _list(view, behind, kind)
        if good or _is_padding(view, behind):
            return End(stop, following=following)
    if ends is None or ends > stop + kind.align:
        return End(view.size, cut(data.size, view.size - data.start))
    mend = by_ffmpeg(name, '-ignore_length 1') if kind is LITTLE else 'save it again as WAV'
    raise InputError(
        f'{name} goes on for {view.size - stop} bytes behind the end that its header gives. If '
        f'they are sound, mend the header: {mend}; if they are not, leave them out: '
        f'{by_ffmpeg(name)}'
    )


def cut(size: int, found: int) -> str:
    """The remark on bytes of sound that are not as many as declared."""
    return (
        f'says it holds {size} bytes of sound where there are {found}, as after a recorder was '
        'stopped; it is read to its end'
    )


def until(
    view: View, at: int, kind: Kind, last: bytes
) -> tuple[dict[bytes, bytes], Chunk | None]:
    """Contents of the chunks before the one of the name `last`, and that one if it is there."""
    found = {}
    for _ in range(MOST_CHUNKS):
        chunk = _chunk(view, at, kind)
        if chunk is None or chunk.name == last:
            return found, chunk
        found[chunk.name] = view.at(chunk.start, min(chunk.size, MOST_FMT))
        at = _behind(view, chunk, kind)
    return found, None


def _chunk(view: View, at: int, kind: Kind) -> Chunk | None:
    """The chunk whose header is at this byte; None if there is none."""
    header = view.at(at, kind.header)
    if len(header) < kind.header or not all(0x20 <= c < 0x7F for c in header[:4]):
        return None
    size = struct.unpack(kind.size, header[kind.name :])[0]
    return Chunk(header[:4], at + kind.header, max(0, size - kind.header * kind.included))


def _behind(view: View, chunk: Chunk, kind: Kind) -> int:
    """Where the next chunk begins; some writers leave out the zero behind an odd size."""
    stop = chunk.start + chunk.size
    padded = stop + -stop % kind.align
    return stop if _chunk(view, stop, kind) and not _chunk(view, padded, kind) else padded


def _list(view: View, at: int, kind: Kind) -> tuple[bool, int | None]:
    """Whether nothing but chunks follows, up to the end or to a recording; and where that is."""
    for _ in range(MOST_CHUNKS):
        if NEXT.match(view.at(at, 12)):
            return True, at
        if view.size - at < kind.align:
            return True, None
        chunk = _chunk(view, at, kind)
        if chunk is None or chunk.name == b'data':
            return False, None
        if chunk.start + chunk.size > view.size:
            return chunk.name in TEXTS, None  # cut off itself
        at = _behind(view, chunk, kind)
    return False, None


def _is_padding(view: View, at: int) -> bool:
    """Whether tags of another format follow, or zeros alone."""
    if view.at(at, 16).startswith(PADDING):
        return True
    return next(view.find(NOT_ZERO, at), None) is None


def unless_unknown(stop: int, size: int, kind: Kind) -> int | None:
    """`stop`, None if the size it was found by stands for "unknown"."""
    return None if size == 0 or size >= kind.unknown else stop
