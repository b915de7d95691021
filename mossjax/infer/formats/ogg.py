"""Ogg files: streams that follow each other ("chained"), and those beside each other.

Internet radio and `cat` put streams one behind the other; libsndfile reads the first. Each is
handed on alone.

Source: RFC 3533, sections 4 (grouping and chaining) and 6 (page header).
"""

from collections.abc import Iterator
import dataclasses
import re

from mossjax.infer.formats.view import Part, Survey, View

CAPTURE = re.compile(rb'OggS\0')
HEADER = 27  # bytes of a page header before its segment table
FIRST, LAST = 2, 4  # flags of the first and the last page of a stream
# What libsndfile reads of an Ogg stream, by its first bytes.
READ = (b'OpusHead', b'\x01vorbis')


@dataclasses.dataclass(frozen=True)
class Page:
    start: int
    stop: int
    flags: int
    begins: bytes  # of its stream, on a first page


def ogg(view: View, name: str) -> Survey:
    """One part for each link of the chain."""
    del name
    links, previous = [], None
    for page in _pages(view):
        if previous is None or page.flags & FIRST and not previous.flags & FIRST:
            links.append([])
        links[-1].append(page)
        previous = page
    parts = tuple(_part(link) for link in links)
    remarks = []
    if len(parts) > 1:
        remarks.append(f'holds {len(parts)} recordings one behind the other; all are read')
    if links and not links[-1][-1].flags & LAST:
        remarks.append('has no mark of its end, as after a recorder was stopped; it may be cut off')
    return Survey(parts, tuple(remarks))


def _part(link: list[Page]) -> Part:
    streams = [page.begins for page in link if page.flags & FIRST]
    alone = len(streams) == 1 and streams[0].startswith(READ)
    why = '' if alone else 'it has other streams than one of Vorbis or Opus'
    return Part(link[0].start, link[-1].stop, ffmpeg=why)


def _pages(view: View) -> Iterator[Page]:
    """The whole pages of a file; what is between them is left out."""
    at = 0
    while len(header := view.at(at, HEADER + 255)) >= HEADER:
        table = header[HEADER : HEADER + header[HEADER - 1]]
        start = at + HEADER + len(table)
        stop = start + sum(table)
        if CAPTURE.match(header) and stop <= view.size:
            yield Page(at, stop, header[5], view.at(start, 8) if header[5] & FIRST else b'')
            at = stop
        else:
            at = next(view.find(CAPTURE, at + 1), view.size)
