"""Numbers of a run: `metrics.jsonl` (one line an interval) and TensorBoard events.

Objects in buckets cannot grow, so there the lines are parts: `metrics/STEP-TIME.jsonl`, one each,
which in order of their names are the file; and the events of a save are a file of their own.
"""

from collections.abc import Iterator
import concurrent.futures
import dataclasses
import io
import json
import os
import socket
import struct
import time

from absl import logging
import numpy as np

from mossjax.files import replacing, room_for
from mossjax.paths import in_bucket

NAME = 'metrics.jsonl'
PARTS = 'metrics'  # their folder, in a bucket
AMOUNTS = ('tokens', 'audio_seconds')


@dataclasses.dataclass(frozen=True)
class Speed:
    """What amounts are divided by, and what utilisation is made of.

    Attributes:
      chips: of the whole mesh.
      peak: operations a second of one, None where nobody knows.
      convention, done: operations a token, see `models.lm.flops`; None of other networks.
    """

    chips: int
    peak: float | None = None
    convention: float | None = None
    done: float | None = None

    def utilisation(self, tokens: float) -> dict[str, float]:
        """Shares of the peak at so many tokens a second and chip.

        `mfu` is by the convention. Where less is done than that, `mfu_done` is by what is done.
        """
        if self.peak is None or self.convention is None:
            return {}
        found = {'mfu': tokens * self.convention / self.peak}
        if self.done != self.convention:
            found['mfu_done'] = tokens * self.done / self.peak
        return found


class Recorder:
    """Writes scalars of one run.

    Args:
      workdir: holds metrics.jsonl and tensorboard/, of which nothing is written twice.
      step: updates done so far; lines of a run that died after that step are dropped, since they
        will be written again.

    Raises:
      InputError: the disk takes no more, here and in `write`.
    """

    def __init__(self, workdir, step: int):
        self._workdir = workdir
        if in_bucket(workdir):
            for path in _parts(workdir):
                if _step_of(path) > step:
                    path.unlink()
        else:
            kept = ''.join(_line(x) for x in read(workdir / NAME) if x['step'] <= step)
            with replacing(workdir / NAME) as temporary:
                temporary.write_text(kept)
        self._events = _Events(workdir / 'tensorboard', step)

    def write(self, step: int, values: dict[str, float]) -> None:
        new = _line({'step': step, **values})
        if in_bucket(self._workdir):
            part = self._workdir / PARTS / f'{step:09d}-{time.time_ns():020d}.jsonl'
            part.write_text(new)
        else:
            path = self._workdir / NAME
            with room_for(path), open(path, 'a') as lines:
                lines.write(new)
        self._events.write(step, values)

    def settle(self) -> None:
        """Everything said so far is where it stays; called with each save."""
        self._events.settle()

    def close(self) -> None:
        self._events.close()


class _Events:
    """TensorBoard event files, written at once and in this thread: a full disk shows here."""

    def __init__(self, folder, step: int):
        self._folder, self._step, self._file, self._made = folder, step, None, 0
        if not in_bucket(folder):
            with room_for(folder):
                folder.mkdir(parents=True, exist_ok=True)
            self._open()

    def write(self, step: int, values: dict[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        if self._file is None:
            self._open()
        self._step = step
        shown = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(Event(step=step, summary=Summary(value=shown)))

    def settle(self) -> None:
        if self._file is not None and in_bucket(self._folder):
            self._path.write_bytes(self._file.getvalue())
            self._file = None

    def close(self) -> None:
        self.settle()
        if self._file is not None:
            self._file.close()

    def _open(self) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        # TensorBoard reads the files of a folder in the order of their names.
        number = f'{os.getpid()}.{self._made}'
        name = f'events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{number}'
        self._path, self._made = self._folder / name, self._made + 1
        if in_bucket(self._folder):
            self._file = io.BytesIO()
        else:
            with room_for(self._path):
                self._file = open(self._path, 'ab', buffering=0)
        self._add(Event(file_version='brain.Event:2'))
        # Hides what a run that died has shown of later steps.
        self._add(Event(step=self._step + 1, session_log=SessionLog(status=SessionLog.START)))

    def _add(self, event) -> None:
        from tensorboardX.record_writer import masked_crc32c

        event.wall_time = time.time()
        data = event.SerializeToString()
        header = struct.pack('<Q', len(data))
        sums = (struct.pack('<I', masked_crc32c(x)) for x in (header, data))
        with room_for(self._path):
            self._file.write(header + next(sums) + data + next(sums))


def _line(values: dict) -> str:
    return json.dumps(values) + '\n'


def read(path) -> list[dict]:
    """The lines of WORKDIR/metrics.jsonl or, in a bucket, of its parts.

    One cut short by a crash is left out.
    """
    lines = []
    for part, text in _texts(path):
        for line in text.splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                logging.warning('%s: dropped an incomplete line', part)
    return lines


def last_step(workdir) -> int | None:
    """The step of the last line, None if there is none; in a bucket no line is read for it."""
    if in_bucket(workdir):
        return max(map(_step_of, _parts(workdir)), default=None)
    lines = read(workdir / NAME)
    return lines[-1]['step'] if lines else None


def _texts(path) -> Iterator[tuple]:
    if not in_bucket(path):
        if path.exists():
            yield path, path.read_text()
        return
    parts = _parts(path.parent)
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        yield from zip(parts, pool.map(lambda path: path.read_text(), parts), strict=True)


def _parts(workdir) -> list:
    return sorted((workdir / PARTS).glob('*.jsonl'))


def _step_of(part) -> int:
    return int(part.name.split('-')[0])


def summarise(steps: list[dict], seconds: dict[str, float], speed: Speed) -> dict[str, float]:
    """Means over the steps of an interval that were not skipped; amounts of data as rates.

    Args:
      steps: metrics of each step, host scalars.
      seconds: of the interval, by bucket (`clock`). Rates leave out those of `start` and `compile`,
        which come once, and of `held_out`.
    """
    counted = [s for s in steps if s['finite']]
    names = [n for n in steps[0] if n != 'finite'] if counted else []
    values = {name: float(np.mean([s[name] for s in counted], dtype=np.float64)) for name in names}
    aside = sum(seconds[name] for name in ('start', 'compile', 'held_out'))
    working = sum(seconds.values()) - aside
    for name in AMOUNTS:
        if name in values:
            rate = values.pop(name) * len(counted) / working / speed.chips
            values[f'{name}_per_chip_second'] = rate
            values |= speed.utilisation(rate) if name == 'tokens' else {}
    values['seconds_per_step'] = working / len(steps)
    return values | {f'seconds_{name}': spent for name, spent in seconds.items() if spent}
