"""WAV, RF64, BW64, W64, AIFF, CAF and AU: where the samples really end.

All but AU are lists of chunks with a size each. A recorder or a pipe that could not go back leaves
the size of the samples at 0 or at its largest value, one that was killed leaves an old one. Each
recording is handed on under a header that says what is there; other chunks are left out.

Rules: sizes that promise more than the file has are read to its end, and this is said unless the
size is one of those that stand for "unknown". Bytes behind the samples are more chunks, another
recording, padding or tags; what is none of these is sound if the file's own size includes it, and
else the file is refused, since nobody can tell sound from rubbish.

Sources: Microsoft's RIFF specification, EBU Tech 3306 (RF64), ITU-R BS.2088 (BW64), Sony's Wave 64,
Apple's Audio Interchange File Format 1.3 and Core Audio Format 1.0, Sun's sound(4).
"""

import dataclasses
import re
import struct

from mossjax.errors import InputError
from mossjax.infer.formats.block import by_ffmpeg, check_format
from mossjax.infer.formats.mpeg import mpeg
from mossjax.infer.formats.view import Part, Survey, View

# 32-bit sizes from here on stand for "unknown": sox, arecord and ffmpeg each have their own.
UNKNOWN_32, UNKNOWN_64 = 0x7FFF0000, 1 << 62
RIFF = re.compile(rb'(?:RIFF|RIFX|RF64|BW64)[\0-\xff]{4}WAVE')
PADDING = (b'TAG', b'APETAGEX', b'ID3', b'LYRICSBEGIN')  # tags of other formats, put behind
TEXTS = (b'LIST', b'id3 ', b'ID3 ', b'bext', b'iXML', b'_PMX', b'cue ', b'info')
MOST_FMT = 4096  # bytes of a description of samples
MOST_CHUNKS = 10_000
# Codings whose blocks are one sample of each channel: integers, floats, A-law, mu-law, extensible.
PLAIN = {1, 3, 6, 7, 0xFFFE}
MPEG = {0x50, 0x55}
PLAIN_AIFC = {b'NONE': 0, b'twos': 0, b'sowt': 0, b'raw ': 0, b'in24': 3, b'in32': 4, b'fl32': 4,
              b'FL32': 4, b'fl64': 8, b'FL64': 8, b'ulaw': 1, b'ULAW': 1, b'alaw': 1, b'ALAW': 1}


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


def wav(view: View, name: str) -> Survey:
    """RIFF, RIFX, RF64, BW64 and W64, also several one behind the other."""
    parts, remarks, start = [], [], 0
    while start is not None:
        part, said, start = _one_wav(view, start, name)
        parts.append(part)
        remarks += filter(None, said)
    if len(parts) > 1:
        remarks.append(f'holds {len(parts)} recordings one behind the other; all are read')
    return Survey(tuple(parts), tuple(remarks))


def _one_wav(view: View, start: int, name: str) -> tuple[Part, list[str], int | None]:
    magic = view.at(start, 4)
    kind = {b'riff': WIDE, b'RIFX': BIG}.get(magic, LITTLE)
    opening = 2 * kind.name + 8 if kind is WIDE else 12
    whole = struct.unpack(kind.size, view.at(start + kind.name, kind.header - kind.name))[0]
    found, chunk = _until(view, start + opening, kind, b'data')
    fmt = found.get(b'fmt ', b'')
    if chunk is None or len(fmt) < 14:
        raise InputError(
            f'{name} is a WAV file without {"its samples" if fmt else "their description"}; '
            'record or copy it again'
        )
    order = kind.size[0]
    tag, channels, rate, _, block = struct.unpack(order + 'HHIIH', fmt[:14])
    check_format(rate, channels, name)
    size = chunk.size
    if size == 0xFFFFFFFF and b'ds64' in found:
        whole, size = struct.unpack('<QQ', found[b'ds64'][:16].ljust(16, b'\0'))
    ends = _unless_unknown(start + whole + (0 if kind.included else 8), whole, kind)
    stop, remark, following = _end(view, dataclasses.replace(chunk, size=size), kind, ends, name)
    if tag in MPEG:
        inside = mpeg(view.part(chunk.start, stop), name)
        part = inside.parts[0].moved(chunk.start)
        return part, [remark, *inside.remarks], following
    frames = (stop - chunk.start) // block if tag in PLAIN and block else None
    head = _wav_head(fmt, stop - chunk.start, order)
    return Part(chunk.start, stop, head, frames), [remark], following


def _wav_head(fmt: bytes, size: int, order: str) -> bytes:
    """The shortest header: a description of the samples and their size."""
    fmt += b'\0' * (len(fmt) % 2)
    pack = struct.Struct(order + 'I').pack
    total = min(size + len(fmt) + 20, 0xFFFFFFFF)
    return (
        (b'RIFF' if order == '<' else b'RIFX') + pack(total) + b'WAVEfmt ' + pack(len(fmt)) + fmt
        + b'data' + pack(min(size, 0xFFFFFFFF))
    )  # fmt: skip


def aiff(view: View, name: str) -> Survey:
    """AIFF and AIFC."""
    whole = struct.unpack('>I', view.at(4, 4))[0]
    form = view.at(8, 4)
    found, chunk = _until(view, 12, BIG, b'SSND')
    common = found.get(b'COMM', b'')
    if chunk is None or len(common) < 18:  # as if the description came last
        return Survey((Part(0, view.size),))
    channels, _, bits = struct.unpack('>hIh', common[:8])
    check_format(_extended(common[8:18]), channels, name)
    stop, remark, _ = _end(view, chunk, BIG, _unless_unknown(8 + whole, whole, BIG), name)
    width = PLAIN_AIFC.get(common[18:22] if form == b'AIFC' else b'NONE')
    if width is None:
        return Survey((Part(0, view.size),), (remark,) * bool(remark))
    # The first sample comes after an offset, its own 4 bytes and 4 for the size of blocks.
    begin = chunk.start + 8 + struct.unpack('>I', view.at(chunk.start, 4).rjust(4, b'\0'))[0]
    size = max(0, stop - begin)
    frames = size // (channels * (width or max(1, (bits + 7) // 8)))
    body = form + b''.join(
        (name + struct.pack('>I', len(content)) + content + b'\0' * (len(content) % 2))
        for name, content in (
            *((b'FVER', found[b'FVER']) for _ in range(b'FVER' in found)),
            (b'COMM', common[:2] + struct.pack('>I', min(frames, 0xFFFFFFFF)) + common[6:]),
        )
    )
    body += b'SSND' + struct.pack('>III', min(size + 8, 0xFFFFFFFF), 0, 0)
    head = b'FORM' + struct.pack('>I', min(len(body) + size, 0xFFFFFFFF)) + body
    return Survey((Part(begin, stop, head, frames),), (remark,) * bool(remark))


def caf(view: View, name: str) -> Survey:
    """Core Audio Format."""
    found, chunk = _until(view, 8, CORE, b'data')
    description = found.get(b'desc', b'')
    if chunk is None or len(description) < 32:
        return Survey((Part(0, view.size),))
    rate, coding, *_, channels, _ = struct.unpack('>d4s5I', description[:32])
    check_format(rate, channels, name)
    if coding not in (b'lpcm', b'ulaw', b'alaw'):
        return Survey((Part(0, view.size),))
    stop, remark, _ = _end(view, chunk, CORE, None, name)
    head = view.at(0, 8) + b'desc' + struct.pack('>Q', 32) + description[:32]
    head += b'data' + struct.pack('>Q', stop - chunk.start)
    return Survey((Part(chunk.start, stop, head),), (remark,) * bool(remark))


def au(view: View, name: str) -> Survey:
    """Sun's and NeXT's .au: all behind the header is sound."""
    head = view.at(0, 24)
    order = '>' if head[:4] == b'.snd' else '<'
    begin, size, coding, rate, channels = struct.unpack(order + '5I', head[4:].ljust(20, b'\0'))
    check_format(rate, channels, name)
    begin, remarks = max(begin, 24), ()
    if size != 0xFFFFFFFF and begin + size != view.size:
        remarks = (_cut(size, view.size - begin),)
    head = head[:4] + struct.pack(order + '5I', 24, 0xFFFFFFFF, coding, rate, channels)
    return Survey((Part(begin, view.size, head),), remarks)


def _end(
    view: View, data: Chunk, kind: Kind, ends: int | None, name: str
) -> tuple[int, str, int | None]:
    """Where samples end.

    Args:
      ends: where the file should end by its own account; None if it gives none.

    Returns:
      the byte behind the last sample, a remark or '', and where another recording begins.

    Raises:
      InputError: what follows may be sound or not.
    """
    if data.size == 0 and view.size > data.start and _is_list(view, data.start, kind):
        return data.start, '', None  # no samples, but texts
    if data.size == 0 or data.start + data.size > view.size:
        following = next(view.find(RIFF, data.start), None)
        stop = view.size if following is None else following
        said = data.size < kind.unknown and stop > data.start
        return stop, _cut(data.size, stop - data.start) if said else '', following
    stop = data.start + data.size
    for behind in (stop, stop + -stop % kind.align):
        if RIFF.match(view.at(behind, 12)):
            return stop, '', behind
        if _is_list(view, behind, kind) or _is_padding(view, behind):
            return stop, '', None
    if ends is None or ends > stop + kind.align:
        return view.size, _cut(data.size, view.size - data.start), None
    raise InputError(
        f'{name} goes on for {view.size - stop} bytes behind the end that its header gives. If '
        f'they are sound, mend the header: {by_ffmpeg(name, "-ignore_length 1")}; if they are '
        f'not, leave them out: {by_ffmpeg(name)}'
    )


def _cut(size: int, found: int) -> str:
    return (
        f'says it holds {size} bytes of sound where there are {found}, as after a recorder was '
        'stopped; it is read to its end'
    )


def _until(
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


def _is_list(view: View, at: int, kind: Kind) -> bool:
    """Whether nothing but chunks follows, up to the end."""
    for _ in range(MOST_CHUNKS):
        if view.size - at < kind.align:
            return True
        chunk = _chunk(view, at, kind)
        if chunk is None or chunk.name == b'data':
            return False
        if chunk.start + chunk.size > view.size:
            return chunk.name in TEXTS  # cut off itself
        at = _behind(view, chunk, kind)
    return False


def _is_padding(view: View, at: int) -> bool:
    """Whether tags of another format follow, or zeros alone."""
    if view.at(at, 16).startswith(PADDING):
        return True
    return next(view.find(re.compile(rb'[^\0]'), at), None) is None


def _unless_unknown(stop: int, size: int, kind: Kind) -> int | None:
    return None if size == 0 or size >= kind.unknown else stop


def _extended(ten: bytes) -> float:
    """An 80-bit float, as AIFF writes rates."""
    sign, exponent, mantissa = ten[0] >> 7, int.from_bytes(ten[:2], 'big') & 0x7FFF, ten[2:]
    value = int.from_bytes(mantissa, 'big') * 2.0 ** min(max(exponent - 16446, -1000), 900)
    return -value if sign else value
