"""A lock in a bucket: one object, renewed by its holder, taken over when it is not any more.

`files.locked` holds it where a path is in a bucket.
"""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import socket
import threading
import time

from absl import logging

from mossjax.buckets import CONNECT_S
from mossjax.errors import InputError
from mossjax.exits import AGAIN

RENEW_S, STALE_S = 10, 45  # how often it is renewed; after how long without that it is free


@contextlib.contextmanager
def locked(path: str | os.PathLike, what: str) -> Iterator[None]:
    """Holds an object of a bucket as a lock until the block ends.

    The holder renews it every RENEW_S; one that has not been for STALE_S is taken over, at once if
    its holder was a process of this machine that is gone. Every step is bound to the generation of
    the object that was seen, so of two that try one gets it. A holder that finds its lock taken (it
    was cut off for too long) ends its process, to be started again.

    Args:
      what: the lock stands for, for the message.

    Raises:
      InputError: another process holds it.
    """
    lock = _Lock(os.fspath(path))
    lock.take(what)
    over = threading.Event()
    thread = threading.Thread(target=lock.renew, args=(over, what), name='lock', daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(CONNECT_S)
        lock.leave()


def me() -> str:
    """How a lock names its holder."""
    return f'process {os.getpid()} on {socket.gethostname()}'


def in_use(what: str, holder: str) -> InputError:
    """The error of a lock that another process holds."""
    return InputError(f'{what} is in use by {holder}; end that first, or name another place')


class _Lock:
    def __init__(self, path: str):
        from google.cloud import storage

        bucket, _, self._name = path.removeprefix('gs://').partition('/')
        self._bucket = storage.Client().bucket(bucket)
        self._me = me()
        self._generation = 0  # of the object as we wrote it; 0: there must be none

    def take(self, what: str) -> None:
        from google.api_core.exceptions import PreconditionFailed

        seen, since = 0, time.monotonic()
        while True:
            self._generation, holder = self._read()
            if self._generation not in (0, seen):
                if seen:  # it was renewed while we waited
                    raise in_use(what, holder)
                seen, since = self._generation, time.monotonic()
            stale = time.monotonic() >= since + STALE_S
            if self._generation and not (stale or self._is_gone(holder)):
                logging.info('%s was in use by %s; waiting to see whether it is', what, holder)
                time.sleep(RENEW_S)
                continue
            with contextlib.suppress(PreconditionFailed):
                self._write()
                return
            seen = 0

    def renew(self, over: threading.Event, what: str) -> None:
        from google.api_core.exceptions import PreconditionFailed

        while not over.wait(RENEW_S):
            try:
                self._write()
            except PreconditionFailed:
                if self._is_mine():
                    continue
                logging.error('%s was taken by another process: ending with %d', what, AGAIN)
                os._exit(AGAIN)
            except Exception as error:  # out of reach for now; whoever waits sees it grow old
                logging.warning('the lock of %s could not be renewed: %s', what, error)

    def _is_mine(self) -> bool:
        """We wrote it last, and never got the answer."""
        with contextlib.suppress(Exception):
            generation, holder = self._read()
            if holder == self._me:
                self._generation = generation
                return True
        return False

    def leave(self) -> None:
        with contextlib.suppress(Exception):  # it grows old
            self._bucket.blob(self._name).delete(
                if_generation_match=self._generation, timeout=CONNECT_S
            )

    def _read(self) -> tuple[int, str]:
        """(generation, who holds it); (0, '') where nobody does."""
        from google.api_core.exceptions import NotFound

        blob = self._bucket.get_blob(self._name, timeout=CONNECT_S)
        with contextlib.suppress(NotFound):  # it was given up just now
            if blob is not None:
                return blob.generation, blob.download_as_text(timeout=CONNECT_S)
        return 0, ''

    def _write(self) -> None:
        blob = self._bucket.blob(self._name)
        blob.upload_from_string(
            self._me, if_generation_match=self._generation, timeout=CONNECT_S, retry=None
        )
        self._generation = blob.generation

    def _is_gone(self, holder: str) -> bool:
        """A process of this machine that is not there any more (or was one of our number)."""
        words = holder.split()
        if len(words) != 4 or words[3] != socket.gethostname() or not words[1].isdigit():
            return False
        number = int(words[1])
        return number == os.getpid() or not pathlib.Path(f'/proc/{number}').exists()
