"""Writing files so that nobody ever reads half of one."""

from collections.abc import Iterator
import contextlib
import errno
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
