"""One rule for every path a user gives, checked before work starts.

A path is on a disk of this machine or, where the command can write or read there, in a bucket
('gs://...', with the extra [gcs]). `~` is the home folder, names may be any bytes, symbolic links
are followed, and pipes may stand where one file is read or written once. What is wrong with a
path (a file where a folder is due, a folder that takes no file, a full disk) is said with the
flag's name, at the start of a command and not after an hour.
"""

from collections.abc import Mapping
import contextlib
import errno
import os
from pathlib import Path
import re
import stat
import tempfile

from mossjax.errors import InputError

_SCHEME = re.compile(r'([A-Za-z][A-Za-z0-9+.-]+):/+')
# Refused as paths, with what to do instead.
_ELSEWHERE = {
    'file': 'give the path itself, without file://',
    'hf': "download it first: hf download OWNER/NAME --local-dir DIR",
    'http': 'download it first (curl -L -O URL) and give the path of the file',
    'https': 'download it first (curl -L -O URL) and give the path of the file',
}
PROBE_BYTES = 65536  # written and removed again, to see that a folder takes files


def expand(path: str | os.PathLike, name: str) -> str:
    """The path as text, `~` resolved.

    Args:
      name: what the path is for, e.g. '--out', as messages call it.

    Raises:
      InputError: it is empty, cannot be a path, or names a place of a kind we do not know.
    """
    text = os.fspath(path)
    if not text.strip():
        raise InputError(f'{name} is empty; give a path')
    if '\0' in text:
        raise InputError(f'{name} {text!r} holds a NUL character, which no path can')
    found = _SCHEME.match(text)
    if found and (scheme := found.group(1).lower()) != 'gs':
        if scheme in _ELSEWHERE or '://' in text:
            remedy = _ELSEWHERE.get(scheme, 'only local paths and gs:// are known; copy it first')
            raise InputError(f'{name} {text}: {scheme}:// is not read here; {remedy}')
    if found and scheme == 'gs' and not re.match(r'gs://[a-z0-9][\w.-]*(/|$)', text):
        raise InputError(f'{name} {text}: a bucket is named gs://BUCKET/FOLDER')
    return os.path.expanduser(text)


def user_folder(
    variable: str, usual: str, environment: Mapping[str, str] = os.environ
) -> Path | None:
    """Where the XDG base directory specification has files of a kind; None without a home.

    Args:
      variable: that says so, e.g. 'XDG_CACHE_HOME'. usual: the place otherwise, e.g. '~/.cache'.
    """
    base = environment.get(variable, '')
    if not os.path.isabs(base):
        base = os.path.expanduser(usual)
    return Path(base) if os.path.isabs(base) else None


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether the path is a bucket's."""
    return os.fspath(path).startswith('gs://')


def need_buckets(path: str | os.PathLike, name: str) -> None:
    """Does nothing for a path on a disk.

    Raises:
      InputError, OutOfReach: as `buckets.need`.
    """
    if in_bucket(path):
        from mossjax import buckets

        buckets.need(os.fspath(path), name)


def local(path: str | os.PathLike, name: str) -> Path:
    """A path on this machine.

    Raises:
      InputError: it is in a bucket.
    """
    text = expand(path, name)
    if in_bucket(text):
        raise InputError(
            f'{name} {text}: only local paths are taken here; copy with: gcloud storage cp -r'
        )
    return Path(text)


def file_to_read(path: str | os.PathLike, name: str) -> Path:
    """An existing file, or a pipe.

    Raises:
      InputError: there is none, or it cannot be read.
    """
    path = local(path, name)
    what = f'{name} {printable(path)}'
    mode = _mode(path, what)
    if mode is None:
        raise InputError(f'{what}: no such file; check the path')
    if stat.S_ISDIR(mode):
        raise InputError(f'{what} is a folder; give the name of a file in it')
    if not os.access(path, os.R_OK):
        raise InputError(f'{what} cannot be read; check its permissions')
    return path


def folder_to_read(path: str | os.PathLike, name: str) -> Path:
    """An existing folder.

    Raises:
      InputError: there is none, or it cannot be read.
    """
    path = local(path, name)
    what = f'{name} {printable(path)}'
    mode = _mode(path, what)
    if mode is None:
        raise InputError(f'{what}: no such folder; check the path')
    if not stat.S_ISDIR(mode):
        raise InputError(f'{what} is a file; give the folder that holds it')
    if not os.access(path, os.R_OK | os.X_OK):
        raise InputError(f'{what} cannot be read; check its permissions')
    return path


def file_to_write(path: str | os.PathLike, name: str) -> Path:
    """A file that can be made or replaced, or a pipe; its folder is made when it is written.

    Raises:
      InputError: it is a folder, or its folder takes no files.
    """
    ends = os.fspath(path).endswith(os.sep)
    path = local(path, name)
    what = f'{name} {printable(path)}'
    mode = _mode(path, what)
    if ends or mode is not None and stat.S_ISDIR(mode):
        raise InputError(f'{what} is a folder; give the name of a file in it')
    if mode is None or stat.S_ISREG(mode):
        _check_takes_files(Path(os.path.realpath(path)).parent, what)
    elif not os.access(path, os.W_OK):
        raise InputError(f'{what} cannot be written; check its permissions')
    return path


def folder_to_write(path: str | os.PathLike, name: str, *, buckets: bool = False) -> str | Path:
    """A folder that is there or can be made, in a bucket as well if `buckets`.

    Raises:
      InputError: it is a file, or it (or the folder it is to be made in) takes no files.
    """
    text = expand(path, name)
    if buckets and in_bucket(text):
        need_buckets(text, name)
        return text
    path = local(text, name)
    what = f'{name} {printable(path)}'
    mode = _mode(path, what)
    if mode is not None and not stat.S_ISDIR(mode):
        raise InputError(f'{what} is a file; give the name of a folder')
    _check_takes_files(path, what)
    return path


def printable(path: str | os.PathLike) -> str:
    """The path for people: bytes that are no UTF-8 are shown as escapes."""
    return os.fspath(path).encode('utf-8', 'backslashreplace').decode()


def reason(error: OSError) -> str:
    """What an error of the operating system says, without a path."""
    return error.strerror or str(error)


def _mode(path: Path, what: str) -> int | None:
    """Kind and permissions of what stands there, links followed; None if nothing does."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        at = next(parent for parent in path.parents if parent.exists())
        raise InputError(
            f'{what}: {printable(at)} is a file, not a folder; check the path'
        ) from None
    except OSError as error:
        said = {
            errno.ELOOP: 'a symbolic link that leads to itself',
            errno.ENAMETOOLONG: 'a name longer than the file system takes',
            errno.EACCES: 'in a folder you may not enter',
        }.get(error.errno, reason(error))
        raise InputError(f'{what}: {said}; check the path') from None


def _check_takes_files(folder: Path, what: str) -> None:
    """Writes a file into the folder, or into the nearest one above that exists, and removes it."""
    while (mode := _mode(folder, what)) is None:
        folder = folder.parent
    if not stat.S_ISDIR(mode):
        raise InputError(f'{what}: {printable(folder)} is a file, not a folder; check the path')
    try:
        try_file(folder)
    except OSError as error:
        raise InputError(
            f'{what} cannot be written: {printable(folder)} takes no files ({reason(error)}); '
            'free space or name another place'
        ) from None


def try_file(folder: str | os.PathLike) -> None:
    """Writes a file of PROBE_BYTES into a folder and removes it; raises OSError where it cannot."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
        rest = PROBE_BYTES
        while rest:  # the write that meets the end of a disk still succeeds in part
            rest -= probe.write(bytes(rest))


@contextlib.contextmanager
def errors_of(path: str | os.PathLike, doing: str):
    """What the operating system says while a path is used, as InputError that names the path.

    Args:
      doing: 'read' or 'written'.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f'{printable(path)} cannot be {doing}: {reason(error)}') from error
