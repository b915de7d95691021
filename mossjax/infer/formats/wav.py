"""WAV, RF64, BW64 and W64.

Sources: Microsoft's RIFF specification, EBU Tech 3306 (RF64), ITU-R BS.2088 (BW64), Sony's Wave 64.
"""

import dataclasses
import re
import struct

from mossjax.errors import InputError
from mossjax.infer.formats.block import check_format
from mossjax.infer.formats.chunks import BIG, LITTLE, WIDE, Found, each, end, unless_unknown, until
from mossjax.infer.formats.mpeg import mpeg
from mossjax.infer.formats.view import Part, Survey, View

MAGIC = re.compile(rb'(?:RIFF|RIFX|RF64|BW64)[\0-\xff]{4}WAVE|riff\x2e\x91\xcf\x11')
# Codings whose blocks are one sample of each channel: integers, floats, A-law, mu-law, extensible.
PLAIN = {1, 3, 6, 7, 0xFFFE}
WIDTHS = {1, 2, 3, 4, 8}  # bytes of a sample
MPEG = {0x50, 0x55}


def wav(view: View, name: str) -> Survey:
    """RIFF, RIFX, RF64, BW64 and W64, also several one behind the other."""
    return each(_one, view, name)


def _one(view: View, start: int, name: str) -> Found:
    magic = view.at(start, 4)
    kind = {b'riff': WIDE, b'RIFX': BIG}.get(magic, LITTLE)
    opening = 2 * kind.name + 8 if kind is WIDE else 12
    opened = view.at(start + kind.name, 8).ljust(8, b'\0')
    whole = struct.unpack_from(kind.size, opened)[0]
    found, chunk = until(view, start + opening, kind, b'data')
    fmt = found.get(b'fmt ', b'')
    if chunk is None or len(fmt) < 14:
        raise InputError(
            f'{name} is a WAV file without {"its samples" if fmt else "their description"}; '
            'record or copy it again'
        )
    order = kind.size[0]
    fields = struct.unpack(order + 'HHIIHH', fmt[:16].ljust(16, b'\0'))
    tag, channels, rate, _, block, bits = fields
    check_format(rate, channels, name)
    size = chunk.size
    if size == 0xFFFFFFFF and b'ds64' in found:
        whole, size = struct.unpack('<QQ', found[b'ds64'][:16].ljust(16, b'\0'))
    ends = unless_unknown(start + whole + (0 if kind.included else 8), whole, kind)
    stop, remark, following = end(view, dataclasses.replace(chunk, size=size), kind, ends, name)
    if tag in MPEG:
        inside = mpeg(view.part(chunk.start, stop), name)
        part = inside.parts[0].moved(chunk.start)
        return Found(part, (remark, *inside.remarks), following)
    frames, width = None, (bits + 7) // 8
    # A block of other bytes than its samples have is a slip, but for wider ones: padded samples.
    if tag in PLAIN and width in WIDTHS and not width * channels < block <= 4 * channels:
        block = width * channels
        fmt = fmt[:12] + struct.pack(order + 'H', block) + fmt[14:]
        frames = (stop - chunk.start) // block
    head = _head(fmt, stop - chunk.start, order)
    return Found(Part(chunk.start, stop, head, frames), (remark,), following)


def _head(fmt: bytes, size: int, order: str) -> bytes:
    """The shortest header: a description of the samples and their size."""
    fmt += b'\0' * (len(fmt) % 2)
    pack = struct.Struct(order + 'I').pack
    total = min(size + len(fmt) + 20, 0xFFFFFFFF)
    return (
        (b'RIFF' if order == '<' else b'RIFX') + pack(total) + b'WAVEfmt ' + pack(len(fmt)) + fmt
        + b'data' + pack(min(size, 0xFFFFFFFF))
    )  # fmt: skip
