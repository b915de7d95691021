"""Buckets, gs://...: one setting for all clients that reach them, and what the clients lack.

Three libraries read and write buckets in a run: gcsfs (small files), TensorStore (arrays of
checkpoints) and ArrayRecord (rows); Orbax asks Google's own client besides. Each has a variable of
its own for another endpoint, each waits for minutes where there is no network. Here one variable,
MOSSJAX_GCS_ENDPOINT (an emulator, a proxy), serves all, and a bucket is asked for once, with
time-outs, before any of them is.
"""

import atexit
from collections.abc import Iterator
import contextlib
import functools
import importlib.util
import os
import pathlib
import shutil
import socket
import tempfile
import threading
from urllib.parse import urlsplit

from absl import logging

from mossjax.errors import InputError, OutOfReach

ENDPOINT = 'MOSSJAX_GCS_ENDPOINT'
CONNECT_S, ANSWER_S = 10, 40  # time-outs of the first question to a bucket
REQUEST_S = 300  # of any later request
# TensorStore ends a transfer that has come to a stand.
_STALLED = {
    'TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS': '60', 'TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES': '1',
}  # fmt: skip
# What the others call their endpoint.
_THEIRS = ('STORAGE_EMULATOR_HOST', 'TENSORSTORE_GCS_HTTP_URL', 'CLOUD_STORAGE_EMULATOR_ENDPOINT')
_UNREACHED = ('UNAVAILABLE', 'DEADLINE_EXCEEDED', 'Cannot connect', 'Connection reset', 'timed out',
              'Timeout of')  # fmt: skip


def need(path: str, name: str) -> None:
    """The bucket of a path is there and answers; asked once in the life of a process.

    Args:
      name: what the path is for, as messages call it.

    Raises:
      InputError: the extra is not installed, there is no such bucket, or it may not be read.
      OutOfReach: no answer in a minute.
    """
    if importlib.util.find_spec('gcsfs') is None:
        raise InputError(
            f"{name} {path}: buckets need the extra [gcs]: pip install 'mossjax[gcs]'; or give a "
            'local path'
        )
    bucket = path.removeprefix('gs://').split('/')[0]
    try:
        _ask(bucket, endpoint())
    except InputError as error:
        raise InputError(f'{name} {path}: {error}') from error.__cause__
    except OutOfReach as error:
        raise OutOfReach(f'{name} {path}: {error}') from error.__cause__


def endpoint() -> str:
    """Where buckets are; tells the clients if that is not the usual place."""
    os.environ.update({key: os.environ.get(key, value) for key, value in _STALLED.items()})
    given = os.environ.get(ENDPOINT, '').rstrip('/')
    if not given:
        return 'https://storage.googleapis.com'
    parts = urlsplit(given)
    if parts.scheme not in ('http', 'https') or not parts.hostname:
        raise InputError(f'{ENDPOINT} is {given!r}; write http://HOST:PORT')
    os.environ.update(dict.fromkeys(_THEIRS, given))
    # What kind of bucket it is would be asked of another service, which only Google has.
    os.environ['GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT'] = 'false'
    return given


@functools.cache
def files():
    """gcsfs, with time-outs; what `epath` uses has them too."""
    import aiohttp
    import fsspec

    timeout = aiohttp.ClientTimeout(total=REQUEST_S, sock_connect=CONNECT_S, sock_read=60)
    # Nothing is remembered of a listing: other clients and processes write there too.
    mine = {'requests_timeout': timeout, 'use_listings_cache': False}
    if os.environ.get(ENDPOINT):
        mine['token'] = 'anon'
    for protocol in ('gcs', 'gs'):
        fsspec.config.conf.setdefault(protocol, {}).update(mine)
    return fsspec.filesystem('gcs', finalize_on_close=True)  # as `epath` asks for it


@functools.cache
def _ask(bucket: str, url: str) -> None:
    """One listing of one object. In a thread: looking up a name or credentials has no time-out."""
    found: list[BaseException | None] = []

    def question() -> None:
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == 'https' else 80)
            socket.create_connection((parts.hostname, port), CONNECT_S).close()
            files().call('GET', 'b/{}/o', bucket, maxResults=1, json_out=True)
            found.append(None)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=question, daemon=True)
    thread.start()
    thread.join(CONNECT_S + ANSWER_S)
    if not found:
        waited = f'{url} has not answered for {CONNECT_S + ANSWER_S:g} s'
        raise OutOfReach(f'{waited}; look at the network of this machine')
    error = found[0]
    if error is None:
        return
    if isinstance(error, FileNotFoundError):
        raise InputError('there is no such bucket; check its name') from error
    said = ' '.join(str(error).split())[:300]
    if _refused(error):
        raise InputError(
            f'the bucket may not be read by who asks here ({said}): give the machine\'s service '
            'account a role on it, or run gcloud auth application-default login'
        ) from error
    away = f'{url} cannot be reached ({said})'
    raise OutOfReach(f'{away}; look at the network of this machine') from error


def _refused(error: BaseException) -> bool:
    code = str(getattr(error, 'code', ''))
    return code in ('401', '403') or 'Forbidden' in str(error) or 'credentials' in str(error)


@contextlib.contextmanager
def reachable(path: str | os.PathLike) -> Iterator[None]:
    """What comes of a bucket that is out of reach while a run works, as OutOfReach.

    Args:
      path: of the run; nothing is done for one on a disk.
    """
    try:
        yield
    except Exception as error:
        if not os.fspath(path).startswith('gs://') or not _unreached(error):
            raise
        raise OutOfReach(f'{path} went out of reach: {str(error)[:300]}') from error


def _unreached(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is one of the way to the bucket."""
    while error is not None:
        kind, code = type(error), str(getattr(error, 'code', ''))
        if isinstance(error, (TimeoutError, ConnectionError)) or code in ('408', '429'):
            return True
        if kind.__module__.split('.')[0] in ('aiohttp', 'requests', 'urllib3'):
            return True
        if code.startswith('5') and len(code) == 3:
            return True
        if any(text in str(error) for text in _UNREACHED):
            return True
        error = error.__cause__ or error.__context__
    return False


# ------------------------------------------------------------------------------------ whole folders


def fetched(path: str, name: str, keep=lambda key: True) -> pathlib.Path:
    """A copy of a folder of a bucket on this machine, removed when the process ends.

    For what reads local files alone: weights as Hugging Face has them.

    Args:
      keep: which files, by their path below the folder.

    Raises:
      InputError: there is none, or the disk has no room for it.
    """
    root = path.removeprefix('gs://').rstrip('/')
    sizes = {key: size for key, size in listed(path, name).items() if keep(key)}
    if not sizes:
        raise InputError(f'{name} {path}: no such folder; check the path')
    folder = scratch()
    total, free = sum(sizes.values()), shutil.disk_usage(folder).free
    if total > free:
        raise InputError(
            f'{name} {path} is copied here first, and has {total / 1e9:.1f} GB; {folder.parent} '
            f'has room for {free / 1e9:.1f}: set TMPDIR to a larger disk'
        )
    logging.info('copying %s, %.3g GB, to %s', path, total / 1e9, folder)
    for key in sizes:
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
    files().get([f'{root}/{key}' for key in sizes], [str(folder / key) for key in sizes])
    return folder


def listed(path: str, name: str) -> dict[str, int]:
    """Bytes of each file below a folder of a bucket, by its path from there; {}: no such folder."""
    need(path, name)
    root = path.removeprefix('gs://').rstrip('/')
    return {
        key.removeprefix(f'{root}/'): entry['size']
        for key, entry in files().find(root, detail=True).items() if not key.endswith('/')
    }


def scratch() -> pathlib.Path:
    """An empty folder that is removed when the process ends."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix='mossjax-'))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def stored(folder: pathlib.Path, path: str, last: str = '') -> None:
    """Copies a folder of this machine into a bucket.

    Args:
      last: the file that is written when all others are there: it says that they are.
    """
    root = path.rstrip('/')
    found = [p for p in sorted(folder.rglob('*')) if p.is_file()]
    for group in ([p for p in found if p.name != last], [p for p in found if p.name == last]):
        if group:
            names = [f'{root}/{p.relative_to(folder).as_posix()}' for p in group]
            files().put([str(p) for p in group], names)
