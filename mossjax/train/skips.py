"""Steps that were skipped because loss or gradient were not finite: counted, named, limited.

The step itself leaves the state as it was (`train.step`), so nothing has to be known at once: the
numbers are looked at when they are logged.
"""

from collections.abc import Callable, Iterable

from absl import logging

from mossjax.values import listed


class Skips:
    """The skipped steps of a run.

    Args:
      max_in_row, max_share: see `config.RunConfig`.
      names: step -> what to call the rows of its batch.
      steps: skipped before, in the checkpoint that the run goes on from; they end at `done`.

    Attributes:
      steps: numbers of all steps skipped so far, ascending.
    """

    def __init__(
        self, max_in_row: int, max_share: float, names: Callable[[int], list[str]],
        steps: Iterable[int] = (), done: int = 0,
    ):  # fmt: skip
        self.max_in_row, self.max_share, self.names = max_in_row, max_share, names
        self.steps, self._last = list(steps), done

    def add(self, step: int, finite: bool) -> None:
        """Takes note of the next step.

        Raises:
          FloatingPointError: it is the one too many.
        """
        self._last = step
        if finite:
            return
        self.steps.append(step)
        logging.warning(
            'step %d skipped: its loss or gradient is not finite. Its rows: %s', step,
            ', '.join(self.names(step - 1)),
        )
        row = self._in_row()
        if len(row) >= self.max_in_row:
            why = f'{len(row)} in a row, config.max_skips is {self.max_in_row}'
            raise FloatingPointError(self._said(row, why))
        if len(self.steps) >= max(self.max_in_row, self.max_share * step):
            why = f'{len(self.steps)} of {step}, config.max_skip_share is {self.max_share:g}'
            raise FloatingPointError(self._said(self.steps, why))

    def _in_row(self) -> list[int]:
        row, expected = [], self._last
        for step in reversed(self.steps):
            if step != expected:
                break
            row.append(step)
            expected -= 1
        return row[::-1]

    def _said(self, steps: list[int], why: str) -> str:
        rows = '; '.join(f'step {step}: {listed(self.names(step - 1))}' for step in steps[-8:])
        return (
            f'loss or gradient was not finite at steps {listed(steps, 20)} ({why}). These steps '
            f'changed nothing. Their rows: {rows}. Look at them; config.data.skip_rows jumps over '
            'rows when the same command goes on from the last checkpoint. If they are sound, lower '
            'optim.peak_lr or lengthen optim.warmup_steps'
        )
