"""A window of steps recorded for XProf (TensorBoard's profiler)."""

from collections.abc import Callable, Iterator
import contextlib
import os

from absl import logging
import jax

from mossjax import buckets
from mossjax.paths import in_bucket


@contextlib.contextmanager
def window(folder, first: int, steps: int) -> Iterator[Callable[[int, object], None]]:
    """Yields a function to be called after each step with its number and what it returned.

    Args:
      folder: gets plugins/profile/, from every process.
      first: the first step that is recorded, past the one that compiles. steps: how many, 0 none.
    """
    if not steps:
        yield lambda step, values: None
        return
    running = []
    here = folder
    if in_bucket(folder):  # which the profiler does not write to
        here = buckets.scratch()

    def after(step: int, values: object) -> None:
        if step == first - 1:
            jax.block_until_ready(values)
            jax.profiler.start_trace(str(here))
            running.append(True)
        elif running and step >= first + steps - 1:
            stop(values)

    def stop(values: object) -> None:
        jax.block_until_ready(values)
        jax.profiler.stop_trace()
        running.clear()
        if here is not folder:
            buckets.stored(here, os.fspath(folder))
        logging.info('steps %d to %d are recorded in %s', first, first + steps - 1, folder)

    try:
        yield after
    finally:
        if running:
            stop(())
