"""When processes worked at a stage: those that were killed count as well as the one that ended it.

Each stage has a file: a span of time [began, last seen] for each of its processes, in seconds since
1970. A process moves its own end on while it lives.
"""

from collections.abc import Iterable, Iterator
import contextlib
import json
from pathlib import Path
import threading
import time

from mossjax.files import replacing

BEAT = 5.0  # seconds between two signs of life: what a kill leaves out of a span at most

Span = list[float]  # [began, last seen]


def file(workdir: Path, stage: str) -> Path:
    """Where the spans of a stage are written."""
    return workdir / 'logs' / f'{stage}.ran.json'


def spans_of(path: Path) -> list[Span]:
    """Those of a file; none if no process wrote it."""
    return json.loads(path.read_text()) if path.exists() else []


@contextlib.contextmanager
def at_work(path: Path) -> Iterator[None]:
    """Adds the span of this block to those of `path`."""
    before, began, ended = spans_of(path), time.time(), threading.Event()

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps([*before, [began, time.time()]]) + '\n')

    def beat() -> None:
        while not ended.wait(BEAT):
            write()

    write()
    pulse = threading.Thread(target=beat, daemon=True)
    pulse.start()
    try:
        yield
    finally:
        ended.set()
        pulse.join()
        write()


def worked(spans: Iterable[Span]) -> float:
    """Seconds that processes worked, two at a time counted twice."""
    return sum(last - began for began, last in spans)


def passed(spans: Iterable[Span]) -> float:
    """Seconds in which at least one process worked."""
    total, until = 0.0, float('-inf')
    for began, last in sorted(spans):
        total += max(0.0, last - max(began, until))
        until = max(until, last)
    return total
