"""AIFF, AIFC, CAF and AU.

Sources: Apple's Audio Interchange File Format 1.3 and AIFF-C draft, Core Audio Format 1.0; Sun's
sound(4).
"""

import struct

from mossjax.infer.formats.block import check_format
from mossjax.infer.formats.chunks import BIG, CORE, Found, cut, each, end, unless_unknown, until
from mossjax.infer.formats.view import Part, Survey, View

# Bytes of a sample by coding; 0: by the bits that the file names.
PLAIN = {b'NONE': 0, b'twos': 0, b'sowt': 0, b'raw ': 0, b'in24': 3, b'in32': 4, b'fl32': 4,
         b'FL32': 4, b'fl64': 8, b'FL64': 8, b'ulaw': 1, b'ULAW': 1, b'alaw': 1, b'ALAW': 1}
PLAIN_CAF = (b'lpcm', b'ulaw', b'alaw')
MOST = 0xFFFFFFFF  # of a 32-bit size


def aiff(view: View, name: str) -> Survey:
    """AIFF and AIFC, also several one behind the other."""
    return each(_one_aiff, view, name)


def caf(view: View, name: str) -> Survey:
    """Core Audio Format, also several one behind the other."""
    return each(_one_caf, view, name)


def au(view: View, name: str) -> Survey:
    """Sun's and NeXT's .au, also several one behind the other."""
    return each(_one_au, view, name)


def _one_aiff(view: View, start: int, name: str) -> Found:
    whole, form = struct.unpack('>I4s', view.at(start + 4, 8))
    found, chunk = until(view, start + 12, BIG, b'SSND')
    common = found.get(b'COMM', b'')
    if chunk is None or len(common) < 18:  # as if the description came last
        return Found(Part(start, view.size))
    channels, _, bits = struct.unpack('>hIh', common[:8])
    check_format(_extended(common[8:18]), channels, name)
    ends = unless_unknown(start + 8 + whole, whole, BIG)
    stop, remark, following = end(view, chunk, BIG, ends, name)
    width = PLAIN.get(common[18:22] if form == b'AIFC' else b'NONE')
    if width is None:
        return Found(Part(start, view.size if following is None else following), (), following)
    # The first sample comes after an offset, its own 4 bytes and 4 for the size of blocks.
    begin = chunk.start + 8 + struct.unpack('>I', view.at(chunk.start, 4).rjust(4, b'\0'))[0]
    size = max(0, stop - begin)
    frames = size // (channels * (width or max(1, (bits + 7) // 8)))
    common = common[:2] + struct.pack('>I', min(frames, MOST)) + common[6:]
    body = form + (_chunk(b'FVER', found[b'FVER']) if b'FVER' in found else b'')
    body += _chunk(b'COMM', common) + b'SSND' + struct.pack('>III', min(size + 8, MOST), 0, 0)
    head = b'FORM' + struct.pack('>I', min(len(body) + size, MOST)) + body
    return Found(Part(begin, stop, head, frames), (remark,), following)


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack('>I', len(content)) + content + b'\0' * (len(content) % 2)


def _one_caf(view: View, start: int, name: str) -> Found:
    found, chunk = until(view, start + 8, CORE, b'data')
    description = found.get(b'desc', b'')
    if chunk is None or len(description) < 32:
        return Found(Part(start, view.size))
    rate, coding, *_, channels, _ = struct.unpack('>d4s5I', description[:32])
    check_format(rate, channels, name)
    stop, remark, following = end(view, chunk, CORE, None, name)
    if coding not in PLAIN_CAF:
        return Found(Part(start, view.size if following is None else following), (), following)
    head = view.at(start, 8) + b'desc' + struct.pack('>Q', 32) + description[:32]
    head += b'data' + struct.pack('>Q', stop - chunk.start)
    return Found(Part(chunk.start, stop, head), (remark,), following)


def _one_au(view: View, start: int, name: str) -> Found:
    magic, fields = view.at(start, 4), view.at(start + 4, 20).ljust(20, b'\0')
    order = '>' if magic == b'.snd' else '<'
    begin, size, coding, rate, channels = struct.unpack(order + '5I', fields)
    check_format(rate, channels, name)
    begin, remark = start + max(begin, 24), ''
    stop = begin + size
    following = stop if view.at(stop, 4) == magic else None
    if following is None:  # all that is left is sound
        remark = '' if size == MOST or stop == view.size else cut(size, view.size - begin)
        stop = view.size
    head = magic + struct.pack(order + '5I', 24, MOST, coding, rate, channels)
    return Found(Part(begin, stop, head), (remark,), following)


def _extended(ten: bytes) -> float:
    """An 80-bit float, as AIFF writes rates."""
    sign, exponent, mantissa = ten[0] >> 7, int.from_bytes(ten[:2], 'big') & 0x7FFF, ten[2:]
    value = int.from_bytes(mantissa, 'big') * 2.0 ** min(max(exponent - 16446, -1000), 900)
    return -value if sign else value
