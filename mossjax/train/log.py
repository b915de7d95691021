"""The log of a run: metrics gathered on the devices, fetched an interval at a time, written."""

import contextlib
import sys

from absl import logging
import jax

from mossjax.parallel import distributed
from mossjax.parallel.chips import memory_in_use
from mossjax.train import metrics
from mossjax.train.clock import Clock
from mossjax.train.skips import Skips


class Log:
    """Fetches the metrics of an interval once the step after it is dispatched, and writes them.

    So the devices never stand still for the log: what it waits for is done, or nearly.

    Args:
      workdir: see `metrics.Recorder`. done: steps before the first.
      stack: closes what is opened here.
    """

    def __init__(
        self, workdir, done: int, config, clock: Clock, skips: Skips, speed: metrics.Speed,
        stack: contextlib.ExitStack,
    ):  # fmt: skip
        self.total, self.every = config.steps, config.log_every
        self.clock, self.skips, self.speed = clock, skips, speed
        self._pending, self._due = [], None
        self._writer = self._bar = None
        if distributed.is_first():
            self._writer = metrics.Recorder(workdir, done)
            stack.callback(self._writer.close)
            if sys.stderr.isatty():
                from tqdm import tqdm

                self._bar = tqdm(total=config.steps, initial=done, unit='step')
                stack.callback(self._bar.close)

    def add(self, step: int, values: dict) -> None:
        """Takes the metrics of the step just dispatched; writes the interval that ended before it.

        Raises:
          FloatingPointError: too many steps of it were skipped.
        """
        if self._due is not None:
            self.flush(self._due)
        self._pending.append((step, values))
        if step % self.every == 0:
            self._due = step
        if self._bar:
            self._bar.update()

    def flush(self, last: int | None = None) -> None:
        """Writes what is pending up to a step, all by default; waits for that step.

        Raises:
          FloatingPointError: too many steps of it were skipped.
        """
        ready = [x for x in self._pending if last is None or x[0] <= last]
        self._pending, self._due = self._pending[len(ready) :], None
        if not ready:
            return
        steps = [step for step, _ in ready]
        before = self.clock.switch('step')  # that is what is waited for
        values = jax.device_get([values for _, values in ready])
        self.clock.switch('log')
        try:
            for step, found in zip(steps, values, strict=True):
                self.skips.add(step, bool(found['finite']))
        finally:
            summary = metrics.summarise(values, self.clock.take(), self.speed)
            summary |= memory_in_use(jax.local_devices()[0])
            self.write(steps[-1], summary | {'skipped': float(len(self.skips.steps))})
        self.clock.switch(before)

    def settle(self) -> None:
        """Writes what is pending, and everything is where it stays: the run may end here."""
        self.flush()
        if self._writer:
            self._writer.settle()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes some numbers of a step."""
        if not self._writer:
            return
        self._writer.write(step, values)
        if self._bar and 'loss' in values:
            self._bar.set_postfix(loss=f'{values["loss"]:.4f}')
        elif not self._bar:
            shown = ' '.join(f'{k}={v:.5g}' for k, v in values.items())
            logging.info('step %d/%d %s', step, self.total, shown)
