"""A process on a terminal of its own (a pty), driven as a person would: wait for words, then type.

Its standard input and error are the terminal, its standard output is a file, as in
`mossjax chat ... > answers.txt`.
"""

import os
import pathlib
import pty
import select
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
PATIENCE = 300  # seconds until a process that says nothing counts as stuck
# Typed Ctrl-C reaches only a process whose controlling terminal it is.
# A suite in the background is deaf to it, and its children with it.
CONTROL = '''
import fcntl, signal, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)
'''
HOME, RIGHT, UP, INTERRUPT, END = '\x01', '\x06', '\x10', '\x03', '\x04'  # Emacs keys of readline


class Terminal:
    """Runs Python code; `with` ends it."""

    def __init__(self, folder: pathlib.Path, code: str, *args, **environment):
        self.output = folder / 'output.txt'
        self.shown = ''  # all of it
        self._new = b''  # since the last wait
        self._ours, theirs = pty.openpty()
        environment = {
            **os.environ, 'PYTHONPATH': str(ROOT), 'INPUTRC': os.devnull, 'TERM': 'xterm',
            'XDG_STATE_HOME': str(folder / 'state'), **environment,
        }  # fmt: skip
        with open(self.output, 'wb') as output:
            self.process = subprocess.Popen(
                [sys.executable, '-c', CONTROL + code, *map(str, args)], stdin=theirs,
                stdout=output, stderr=theirs, env=environment, cwd=folder, start_new_session=True,
            )  # fmt: skip
        os.close(theirs)

    def __enter__(self) -> 'Terminal':
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._ours)

    def wait_for(self, words: str) -> str:
        """What the terminal showed up to these words, since the last wait."""
        while words.encode() not in self._new:
            more = self._read()
            assert more, f'ended without {words!r}:\n{self.shown}'
        before, _, self._new = self._new.partition(words.encode())
        return before.decode(errors='replace')

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C, typed when the process waits for it.

        Python forgets a signal that comes between the prompt and the wait for a key.
        """
        stat = pathlib.Path(f'/proc/{self.process.pid}/stat')
        while stat.read_text().rpartition(')')[2].split()[0] != 'S':
            time.sleep(0.05)
        self.type(INTERRUPT)

    def end(self) -> int:
        """Waits for the end; returns the exit code."""
        while self._read():
            pass
        return self.process.wait(PATIENCE)

    def _read(self) -> bytes:
        ready, _, _ = select.select([self._ours], [], [], PATIENCE)
        assert ready, f'nothing more after:\n{self.shown}'
        try:
            more = os.read(self._ours, 4096)
        except OSError:  # EIO: nobody has the other end any more
            more = b''
        self._new += more
        self.shown += more.decode(errors='replace')
        return more
