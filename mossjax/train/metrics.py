"""Numbers of a run: `metrics.jsonl` (one line an interval) and TensorBoard events."""

import json

from absl import logging
import numpy as np

from mossjax.files import replacing, room_for
from mossjax.paths import in_bucket

NAME = 'metrics.jsonl'
AMOUNTS = ('tokens', 'audio_seconds')


class Recorder:
    """Writes scalars of one run.

    Args:
      workdir: holds metrics.jsonl and tensorboard/; in a bucket, only the former.
      step: updates done so far; lines of a run that died after that step are dropped, since they
        will be written again.
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
        import tensorboardX

        self._events = tensorboardX.SummaryWriter(str(workdir / 'tensorboard'), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        new = _line({'step': step, **values})
        if self._events is None:
            self._text += new
            self._path.write_text(self._text)
            return
        with room_for(self._path), open(self._path, 'a') as lines:
            lines.write(new)
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


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


def summarise(steps: list[dict], seconds: float) -> dict[str, float]:
    """Means over the steps of an interval; amounts of data as rates.

    Args:
      steps: metrics of each step, host scalars.
      seconds: that the interval took.
    """
    names = [n for n in steps[0] if n != 'finite']
    values = {name: float(np.mean([s[name] for s in steps], dtype=np.float64)) for name in names}
    for name in AMOUNTS:
        if name in values:
            values[f'{name}_per_second'] = values.pop(name) * len(steps) / seconds
    return values | {'seconds_per_step': seconds / len(steps)}
