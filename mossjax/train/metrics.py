"""Numbers of a run: `metrics.jsonl` (one line an interval) and TensorBoard events."""

import json
import pathlib

from absl import logging
import numpy as np

AMOUNTS = ('tokens', 'audio_seconds')


class Recorder:
    """Writes scalars of one run.

    Args:
      workdir: holds metrics.jsonl and tensorboard/.
      step: updates done so far; lines of a run that died after that step are dropped, since they
        will be written again.
    """

    def __init__(self, workdir: pathlib.Path, step: int):
        import tensorboardX

        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / 'metrics.jsonl'
        kept = [line for line in read(path) if line['step'] <= step]
        whole = workdir / 'metrics.jsonl.tmp'
        whole.write_text(''.join(json.dumps(line) + '\n' for line in kept))
        whole.replace(path)
        self._lines = path.open('a')
        self._events = tensorboardX.SummaryWriter(str(workdir / 'tensorboard'), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        self._lines.write(json.dumps({'step': step, **values}) + '\n')
        self._lines.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        self._lines.close()
        self._events.close()


def read(path: pathlib.Path) -> list[dict]:
    """The lines of a metrics.jsonl; a last line cut short by a crash is left out."""
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
