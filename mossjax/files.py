"""Writing files so that nobody ever reads half of one, reading settings, room in memory.

What makes a path good is in `paths`, what makes a number good in `values`.
"""

from collections.abc import Callable, Iterator
import contextlib
import errno
import fcntl
import json
import os
import pathlib
import shutil
import tempfile
from typing import TypeVar
import zlib

from mossjax import bucket_lock, paths, values
from mossjax.errors import InputError, one_or_all, sift

# What a write says when the file system takes no more (EFBIG: a limit on the size of files).
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# ... and when it takes this one nowhere near there.
REFUSED = frozenset({
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
    errno.ENAMETOOLONG, errno.EEXIST,
})  # fmt: skip
MISSING = frozenset({errno.ENOENT, errno.ENXIO, errno.ENODEV})
LOCKED = frozenset({errno.EACCES, errno.EAGAIN})

Parsed = TypeVar('Parsed')


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`; it takes that name when the block ends well.

    If the block raises, the temporary file is removed and what stood at `path` is untouched. The
    folder is made if it is missing. The suffix is kept, since some writers choose the format by it.
    A symbolic link stays one: what it points to is replaced. Into a pipe or a device, which cannot
    be replaced, the finished file is copied.

    Raises:
      InputError: the place takes no file, or the disk is full.
    """
    path = pathlib.Path(path)
    real = pathlib.Path(os.path.realpath(path))
    stream = is_stream(path)
    folder = pathlib.Path(tempfile.gettempdir()) if stream else real.parent
    # Short, whatever the name: with a prefix of its own it could be longer than file systems take.
    suffix = real.suffix if len(real.suffix) < 12 else ''
    temporary = folder / f'.{zlib.crc32(os.fsencode(real)):08x}.{os.getpid()}{suffix}'
    try:
        with room_for(path):
            folder.mkdir(parents=True, exist_ok=True)
            yield temporary
            if stream:
                with open(temporary, 'rb') as source, open(real, 'wb') as sink:
                    shutil.copyfileobj(source, sink)
            else:
                os.replace(temporary, real)
    finally:
        with contextlib.suppress(OSError):  # where it could not be made either
            temporary.unlink()


def is_stream(path: str | os.PathLike) -> bool:
    """Whether a pipe or a device stands there, which is written to and not replaced.

    Raises:
      InputError: one may not look.
    """
    path = pathlib.Path(path)
    with room_for(path):
        return path.exists() and not path.is_file() and not path.is_dir()


@contextlib.contextmanager
def room_for(path: str | os.PathLike, unchanged: bool = True) -> Iterator[None]:
    """Says of a disk that takes no more, or no file at all, what was being written.

    Args:
      unchanged: what stood there before is there still.

    Raises:
      InputError: the block raised an error of the file system about its own writing.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            before = 'What stood there before is unchanged; free' if unchanged else 'Free'
            raise InputError(
                f'{paths.printable(path)} cannot be written: {error.strerror}. {before} space or '
                'name a place on another disk, then run the same command again'
            ) from error
        if error.errno not in REFUSED:
            raise
        raise InputError(
            f'{paths.printable(path)} cannot be written: {error.strerror}; name another place or '
            'change its permissions'
        ) from error


@contextlib.contextmanager
def locked(path: str | os.PathLike, what: str) -> Iterator[None]:
    """Holds a lock file, made if it is missing, until the block ends or the process dies.

    The file stays and says who holds it, or did last. Where the file system has no locks (some
    network disks) nothing is held. In a bucket: see `bucket_lock.locked`.

    Args:
      what: the lock stands for, for the message.

    Raises:
      InputError: another process holds it, or the file cannot be written.
    """
    if paths.in_bucket(path):
        with bucket_lock.locked(path, what):
            yield
        return
    path = pathlib.Path(path)
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, 'a+')
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in LOCKED:
                file.seek(0)
                raise bucket_lock.in_use(what, file.read(200) or 'another process') from None
        with room_for(path):
            file.truncate(0)
            file.write(bucket_lock.me())
            file.flush()
        yield


def read_text(path: str | os.PathLike, limit: int = 2**28) -> str:
    """A whole text file in UTF-8.

    Raises:
      InputError: there is none, it is larger than `limit` bytes, or not text.
    """
    path = pathlib.Path(path)
    shown = paths.printable(path)
    if path.is_dir():
        raise InputError(f'{shown} is a folder where a file is due. Give the complete directory.')
    if not path.exists():
        raise InputError(f'{shown}: no such file. Give the directory that holds it, complete.')
    try:
        with open(path, 'rb') as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise InputError(f'{shown} cannot be read: {error.strerror}') from None
    if len(content) > limit:
        raise InputError(f'{shown} has more than {limit} bytes; it is not what it should be')
    try:
        return content.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise InputError(f'{shown}: not text in UTF-8 ({error}). Download it again.') from None


def read_json(path: str | os.PathLike) -> dict:
    """A JSON object from a file.

    Raises:
      InputError: the file is missing or holds something else.
    """
    shown = paths.printable(path)
    content = values.parse_json(read_text(path), shown)
    if not isinstance(content, dict):
        raise InputError(f'{shown}: not a JSON object. Download it again.')
    return content


def json_text(content: dict, indent: int | None = None) -> str:
    """JSON in which letters stay readable; bytes of names that are no text become escapes."""
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    return text if values.is_text(text) else json.dumps(content, indent=indent)


def json_line(content: dict) -> str:
    """One line of JSONL, see `json_text`."""
    return json_text(content) + '\n'


def read_lines(
    path: str | os.PathLike, parse: Callable[[int, bytes], Parsed], example: str, what: str
) -> list[Parsed]:
    """The lines of a JSONL file, blank ones left out.

    Args:
      parse: (number from 1, line) -> what it says; refuses a bad one.
      example: of a line. what: became of the bad ones, see `refusal`.

    Raises:
      InputError: there is no line, or some are bad: all of them are named.
    """
    with open(path, 'rb') as file:
        given = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    if not given:
        raise InputError(f'{paths.printable(path)} has no lines; write one {example} a line')
    good, bad = sift(lambda line: parse(*line), given)
    if bad:
        raise one_or_all(bad, len(given), what)
    return [parsed for _, parsed in good]


def cut_torn_line(path: str | os.PathLike) -> bool:
    """Cuts off a last line without its newline, which an interruption tore; whether there was one.
    """
    content = pathlib.Path(path).read_bytes()
    end = content.rfind(b'\n') + 1
    if end < len(content):
        os.truncate(path, end)
    return end < len(content)


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
