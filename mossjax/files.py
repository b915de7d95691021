"""Writing files so that nobody ever reads half of one, reading settings, room in memory."""

from collections.abc import Iterator
import contextlib
import errno
import json
import os
import pathlib

from mossjax.errors import InputError

# What a write says when the file system takes no more (EFBIG: a limit on the size of files).
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`; it takes that name when the block ends well.

    If the block raises, the temporary file is removed and what stood at `path` is untouched. The
    folder is made if it is missing. The suffix is kept, since some writers choose the format by it.

    Raises:
      InputError: the disk is full.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f'.{path.stem}.{os.getpid()}{path.suffix}')
    try:
        with room_for(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def room_for(path: str | os.PathLike) -> Iterator[None]:
    """Says of a full disk what was being written.

    Raises:
      InputError: the block raised an error of FULL.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise InputError(
            f'{path} cannot be written: {error.strerror}. What stood there before is unchanged; '
            'free space or name a place on another disk, then run the same command again'
        ) from error


def read_json(path: str | os.PathLike) -> dict:
    """A JSON object from a file.

    Raises:
      InputError: the file is missing or holds something else.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f'{path}: no such file. Give the directory that holds it, complete.')
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise InputError(f'{path}: not JSON ({error}). Download it again.') from None
    if not isinstance(content, dict):
        raise InputError(f'{path}: not a JSON object. Download it again.')
    return content


def available_memory(meminfo: str | None = None) -> int | None:
    """Bytes of host memory that new work may take, None where the system does not say.

    Args:
      meminfo: content of Linux's /proc/meminfo, by default that of this machine.
    """
    if meminfo is None:
        path = pathlib.Path('/proc/meminfo')
        if not path.exists():
            return None
        meminfo = path.read_text()
    fields = {line.split(':')[0]: line.split()[1] for line in meminfo.splitlines() if ':' in line}
    return int(fields['MemAvailable']) * 1024
