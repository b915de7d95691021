"""Numbers of a run: `metrics.jsonl` (one line an interval) and TensorBoard events."""

import dataclasses
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
      workdir: holds metrics.jsonl and tensorboard/; in a bucket, only the former.
      step: updates done so far; lines of a run that died after that step are dropped, since they
        will be written again.

    Raises:
      InputError: the disk takes no more, here and in `write`.
    """

    def __init__(self, workdir, step: int):
        self._path = workdir / NAME
        self._text = ''.join(_line(x) for x in read(self._path) if x['step'] <= step)
        self._events = None
        if in_bucket(workdir):  # where objects cannot grow
            self._path.write_text(self._text)
            return
        with replacing(self._path) as temporary:
            temporary.write_text(self._text)
        self._events = _Events(workdir / 'tensorboard', step)

    def write(self, step: int, values: dict[str, float]) -> None:
        new = _line({'step': step, **values})
        if self._events is None:
            self._text += new
            self._path.write_text(self._text)
            return
        with room_for(self._path), open(self._path, 'a') as lines:
            lines.write(new)
        self._events.write(step, values)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


class _Events:
    """A TensorBoard event file, written at once and in this thread: a full disk shows here."""

    def __init__(self, folder, step: int):
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        name = f'events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}'
        self._path = folder / name
        with room_for(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, 'ab', buffering=0)
        self._add(Event(file_version='brain.Event:2'))
        # Hides what a run that died has shown of later steps.
        self._add(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, values: dict[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        shown = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(Event(step=step, summary=Summary(value=shown)))

    def close(self) -> None:
        self._file.close()

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
    """The lines of a metrics.jsonl; one cut short by a crash is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            logging.warning('%s: dropped an incomplete line', path)
    return lines


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
