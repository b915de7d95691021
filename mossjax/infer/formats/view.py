"""A stretch of a file as a file of its own, and what a survey finds in one."""

from collections.abc import Iterable, Iterator
import dataclasses
import io
import re
from typing import BinaryIO

BLOCK = 1 << 20  # bytes searched at once
NOT_ZERO = re.compile(rb'[^\0]')


class View(io.RawIOBase):
    """`head`, then the bytes of `file` from `start` to `stop`, read only and seekable.

    A seek to a place that cannot be (decoders follow damaged headers there) is led to the nearest
    that can.
    """

    def __init__(self, file: BinaryIO, start: int = 0, stop: int | None = None, head: bytes = b''):
        self._file, self._start, self._head = file, start, head
        end = file.seek(0, io.SEEK_END)
        self.size = len(head) + max(0, (end if stop is None else min(stop, end)) - start)
        self._at = 0

    def at(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from `offset` on; fewer at the end."""
        stop = min(offset + count, self.size)
        if offset >= stop:
            return b''
        head = self._head[offset:stop]
        begin = max(offset, len(self._head))
        if begin >= stop:
            return head
        self._file.seek(self._start + begin - len(self._head))
        return head + self._file.read(stop - begin)

    def find(
        self, pattern: re.Pattern, start: int = 0, stop: int | None = None, longest: int = 64
    ) -> Iterator[int]:
        """Offsets of the matches (of at most `longest` bytes) between start and stop, in order."""
        stop = self.size if stop is None else stop
        for block in range(start, stop, BLOCK):
            text = self.at(block, min(BLOCK + longest, stop - block))
            for match in pattern.finditer(text):
                if match.start() < BLOCK:
                    yield block + match.start()

    def part(self, start: int, stop: int, head: bytes = b'') -> 'View':
        """A stretch of this one under another head."""
        return View(self, start, stop, head)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        self._at = min(max(0, origin + offset), self.size)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer) -> int:
        content = self.at(self._at, len(buffer))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


@dataclasses.dataclass(frozen=True)
class Part:
    """A stretch of a file that holds one recording.

    Attributes:
      start, stop: bytes.
      head: header to put before them.
      frames: samples of each channel that it must give; None where only decoding can tell.
      ffmpeg: why libsndfile would not read all of it and FFmpeg must; '' where libsndfile does.
      skip: samples of each channel that decoding gives before those.
    """

    start: int
    stop: int
    head: bytes = b''
    frames: int | None = None
    ffmpeg: str = ''
    skip: int = 0

    def moved(self, by: int) -> 'Part':
        """The same part of a file that has `by` more bytes in front."""
        return dataclasses.replace(self, start=self.start + by, stop=self.stop + by)


@dataclasses.dataclass(frozen=True)
class Survey:
    """The recordings of a file one after the other, and what the user should know of it."""

    parts: tuple[Part, ...]
    remarks: tuple[str, ...] = ()


def several(parts: Iterable[Part], remarks: Iterable[str] = ()) -> Survey:
    """The survey of a file; a remark is added if it holds more than one recording."""
    parts, remarks = tuple(parts), tuple(remarks)
    if len(parts) > 1:
        remarks += (f'holds {len(parts)} recordings one behind the other; all are read',)
    return Survey(parts, remarks)
