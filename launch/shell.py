"""Running commands while signals may ask us to end."""

import dataclasses
import os
import signal
import subprocess
import threading

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CUT_SHORT = 124  # as timeout(1) says it


class Stopped(Exception):
    """A signal asked this program to end."""


@dataclasses.dataclass(frozen=True)
class Done:
    """A command that has ended: its exit code, and what it printed."""

    code: int
    out: str
    err: str


class Shell:
    """Runs commands, one at a time; a context, within which signals only raise Stopped.

    A signal does not reach the commands themselves: each runs in a session of its own. It ends the
    one that runs, unless that is protected, and is kept until `wait` or the next command that is
    not protected raises it, once.
    """

    def __init__(self):
        self._asked = threading.Event()
        self._running: subprocess.Popen | None = None
        self._before: dict = {}

    def __enter__(self) -> 'Shell':
        self._before = {number: signal.signal(number, self._ask) for number in ENDING}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, words: list[str], limit_s: float, protected: bool = False) -> Done:
        """Runs a command to its end.

        Args:
          limit_s: after as many seconds it is killed; its code is then CUT_SHORT.
          protected: signals do not end it, and are raised later.

        Raises:
          Stopped: a signal came, before or while it ran.
          FileNotFoundError: there is no such command.
        """
        if not protected:
            self._raise()
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors='replace', start_new_session=True,
        )  # fmt: skip
        self._running = None if protected else process
        if self._asked.is_set() and not protected:  # between the look above and this line
            _end(process, signal.SIGTERM)
        try:
            out, err = process.communicate(timeout=limit_s)
            code = process.returncode
        except subprocess.TimeoutExpired:
            _end(process, signal.SIGKILL)
            out, err = process.communicate()
            code = CUT_SHORT
        finally:
            self._running = None
        if not protected:
            self._raise()
        return Done(code, out, err)

    def wait(self, seconds: float) -> None:
        """
        Raises:
          Stopped: a signal came.
        """
        self._asked.wait(seconds)
        self._raise()

    def _raise(self) -> None:
        if self._asked.is_set():
            self._asked.clear()
            raise Stopped

    def _ask(self, *_) -> None:
        self._asked.set()
        if self._running is not None:
            _end(self._running, signal.SIGTERM)


def _end(process: subprocess.Popen, number: int) -> None:
    """Sends a signal to a command and all that it started."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass
