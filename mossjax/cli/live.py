"""A line on the terminal that says, while somebody speaks, how it goes."""

import sys
import time


class Live:
    """Seconds spoken, what a second of sound costs, and when the first one was there.

    It is written over and over on standard error, and only where that is a terminal.
    """

    def __init__(self, rate: int):
        """Args:
          rate: samples a second.
        """
        self._rate, self._began = rate, time.perf_counter()
        self._samples, self._first = 0, None
        self._shows = sys.stderr is not None and sys.stderr.isatty()

    def add(self, samples: int) -> None:
        """So many more were made."""
        if not samples:
            return
        self._samples += samples
        if self._first is None:
            self._first = time.perf_counter() - self._began
        if self._shows:
            print(f'\r\x1b[K{self}', end='', file=sys.stderr, flush=True)

    def end(self) -> None:
        """The line stays, and what follows stands below it."""
        if self._shows and self._samples:
            print(file=sys.stderr, flush=True)

    def __str__(self) -> str:
        seconds = self._samples / self._rate
        factor = (time.perf_counter() - self._began) / seconds
        return (
            f'{seconds:.1f} s spoken, real-time factor {factor:.2f}, first sound after '
            f'{self._first:.2f} s'
        )
