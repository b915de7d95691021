"""Seconds and memory of a process."""

from pathlib import Path
import subprocess
import sys
import time

from experiments.proofs import record


def watched(*command) -> tuple[float, int]:
    """(seconds, peak anonymous bytes) of a process; ends this one if it fails."""
    began, peak = time.monotonic(), 0
    process = subprocess.Popen(list(map(str, command)), cwd=record.ROOT)
    while process.poll() is None:
        try:
            status = Path(f'/proc/{process.pid}/status').read_text()
        except OSError:
            break
        lines = [line.split() for line in status.splitlines()]
        found = [int(words[1]) for words in lines if words[:1] == ['RssAnon:']]
        peak = max([peak, *(1024 * n for n in found)])
        time.sleep(0.05)
    if process.wait():
        sys.exit(f'{" ".join(map(str, command))} failed')
    return time.monotonic() - began, peak


def mossjax(*args) -> tuple[float, int]:
    """`watched`, of a command of this project."""
    return watched(sys.executable, '-m', 'mossjax', *args)


def by_torch(*args) -> None:
    """The module of the tests that writes codecs of the released sizes with torch."""
    command = [sys.executable, '-m', 'tests.parity.released_codec', *map(str, args)]
    if subprocess.run(command, cwd=record.ROOT).returncode:
        sys.exit(f'{" ".join(command)} failed')


def figures(seconds: float, peak: int, size: int) -> dict:
    """For a record; `size` is the bytes that went through."""
    return {
        'seconds': round(seconds, 1), 'mb_per_second': round(size / seconds / 1e6),
        'peak_anonymous_gib': round(peak / 2**30, 2),
    }
