"""What ends a run from outside: a request to stop, and steps that never finish."""

from collections.abc import Callable, Iterator
import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time

from absl import logging
import jax

from mossjax.exits import AGAIN


@contextlib.contextmanager
def termination() -> Iterator[Callable[[], bool]]:
    """Yields a function: has SIGTERM arrived?

    On a pod jax itself listens, see `parallel.distributed.preempted`.
    """
    received = []
    if jax.distributed.is_initialized():
        yield lambda: False
        return
    try:
        before = signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    except ValueError:  # not the main thread: whoever runs us handles signals
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def watchdog(seconds: float) -> Iterator[Callable[[], None]]:
    """Yields a function to be called after every step; ends the process when it is not.

    A host that is gone, or a link that is, leaves the others waiting in a collective operation for
    ever. So after `seconds` without a step the stacks of all threads are printed and the process
    ends with the code that asks to be started again; the last checkpoint is where it was.

    Args:
      seconds: 0 for never.
    """
    if not seconds:
        yield lambda: None
        return
    last, over = [time.monotonic()], threading.Event()

    def watch() -> None:
        while not over.wait(max(0.0, last[0] + seconds - time.monotonic())):
            if time.monotonic() >= last[0] + seconds:
                logging.error('no step has finished for %g s (config.stall_after): ending with '
                              '%d. The threads were here:', seconds, AGAIN)  # fmt: skip
                faulthandler.dump_traceback(sys.__stderr__)
                os._exit(AGAIN)

    threading.Thread(target=watch, name='watchdog', daemon=True).start()
    try:
        yield lambda: last.__setitem__(0, time.monotonic())
    finally:
        over.set()
