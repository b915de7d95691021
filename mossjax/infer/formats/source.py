"""Where a recording comes from: a file, or a pipe that can be read but once."""

from collections.abc import Iterator
import contextlib
import dataclasses
import io
import os
from pathlib import Path
import stat

from mossjax import paths
from mossjax.errors import InputError
from mossjax.infer.formats.view import View

MOST_PIPED = 1 << 30  # bytes taken from a pipe


@dataclasses.dataclass(frozen=True)
class Source:
    """A recording that can be read as often as wanted.

    Attributes:
      name: as it was given, for messages.
      file: where it is.
      piped: what a pipe gave, which can be read but once; None for a file.
    """

    name: str
    file: Path
    piped: bytes | None = None

    @classmethod
    def of(cls, path: 'str | os.PathLike | Source') -> 'Source':
        """
        Raises:
          InputError: there is no such file, it cannot be read or is empty.
        """
        if isinstance(path, Source):
            return path
        file, name = paths.file_to_read(path, 'recording'), paths.printable(path)
        with paths.errors_of(path, 'read'):
            found = file.stat()
            piped = None if stat.S_ISREG(found.st_mode) else _drained(file, name)
        if not (found.st_size if piped is None else piped):
            raise InputError(f'{name} is empty; record or copy it again')
        return cls(name, file, piped)

    @contextlib.contextmanager
    def opened(self) -> Iterator[View]:
        """The bytes."""
        if self.piped is not None:
            yield View(io.BytesIO(self.piped))
            return
        with paths.errors_of(self.file, 'read'), open(self.file, 'rb') as file:
            yield View(file)


def _drained(path: Path, name: str) -> bytes:
    """All that a pipe gives."""
    with open(path, 'rb') as pipe:
        if pipe.isatty():
            raise InputError(f'{name} is a terminal; give a recording, or pipe one in')
        content = pipe.read(MOST_PIPED + 1)
    if len(content) > MOST_PIPED:
        raise InputError(f'{name} gives more than {MOST_PIPED >> 20} MiB; write it to a file first')
    return content
