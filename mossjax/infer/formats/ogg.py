"""Ogg files: streams that follow each other ("chained"), and those beside each other.

Internet radio and `cat` put streams one behind the other; libsndfile reads the first. Each is
handed on alone. Pages whose checksum is wrong count as gaps.

Source: RFC 3533, sections 4 (grouping and chaining) and 6 (page header).
"""

from collections.abc import Iterator
import dataclasses
import re
import zlib

from mossjax.errors import InputError
from mossjax.infer.formats.view import Part, Survey, View, several

CAPTURE = re.compile(rb'OggS\0')
HEADER = 27  # bytes of a page header before its segment table
FIRST, LAST = 2, 4  # flags of the first and the last page of a stream
OPEN_END = 'has no mark of its end, as after a recorder was stopped; it may be cut off'
# What libsndfile reads of an Ogg stream, by its first bytes.
READ = (b'OpusHead', b'\x01vorbis')


@dataclasses.dataclass(frozen=True)
class Page:
    start: int
    stop: int
    flags: int
    begins: bytes  # of its stream, on a first page


def ogg(view: View, name: str) -> Survey:
    """One part for each link of the chain.

    Raises:
      InputError: no page of it is whole.
    """
    links, previous = [], None
    for page in pages(view):
        if previous is None or page.flags & FIRST and not previous.flags & FIRST:
            links.append([])
        links[-1].append(page)
        previous = page
    if not links:
        raise InputError(f'{name} is an Ogg file without a whole page; copy or convert it again')
    open_end = not links[-1][-1].flags & LAST
    return several(map(_part, links), [OPEN_END] if open_end else [])


def _part(link: list[Page]) -> Part:
    streams = [page.begins for page in link if page.flags & FIRST]
    alone = len(streams) == 1 and streams[0].startswith(READ)
    why = '' if alone else 'it has other streams than one of Vorbis or Opus'
    return Part(link[0].start, link[-1].stop, ffmpeg=why)


def pages(view: View) -> Iterator[Page]:
    """The whole pages of a file; what is between them is left out."""
    at = 0
    while len(header := view.at(at, HEADER + 255)) >= HEADER:
        table = header[HEADER : HEADER + header[HEADER - 1]]
        start = at + HEADER + len(table)
        stop = start + sum(table)
        page = view.at(at, stop - at) if CAPTURE.match(header) else b''
        checksum = int.from_bytes(page[22:26], 'little')
        if page and crc32(page[:22] + bytes(4) + page[26:]) == checksum:
            yield Page(at, stop, header[5], page[start - at :][:8] if header[5] & FIRST else b'')
            at = stop
        else:
            at = next(view.find(CAPTURE, at + 1), view.size)


def crc32(data: bytes) -> int:
    """Ogg's checksum: polynomial 0x04c11db7, not reflected, from 0.

    The remainder that zlib computes, of bits in the other order and without its inversions.
    """
    remainder = zlib.crc32(data.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(remainder.to_bytes(4, 'big').translate(_MIRRORED), 'little')


_MIRRORED = bytes(int(f'{byte:08b}'[::-1], 2) for byte in range(256))
