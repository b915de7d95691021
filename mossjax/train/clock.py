"""Where the wall time of a run goes: every second in one named bucket."""

from collections.abc import Callable
import time

# start: until the first batch; data: waiting for a batch; compile; step: waiting for the devices;
# log and save: what these hold up; held_out: the loss on rows that are not trained on.
BUCKETS = ('start', 'data', 'compile', 'step', 'log', 'save', 'held_out')


class Clock:
    """A stopwatch that is always running for one of BUCKETS.

    Args:
      now: seconds, from any origin.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now, self._bucket = now, BUCKETS[0]
        self._since = now()
        self._spent, self._before = (dict.fromkeys(BUCKETS, 0.0) for _ in range(2))

    def switch(self, bucket: str) -> str:
        """What happens from now on belongs to this bucket; returns the one before."""
        now, before = self._now(), self._bucket
        self._spent[before] += now - self._since
        self._since, self._bucket = now, bucket
        return before

    def take(self) -> dict[str, float]:
        """Seconds in each bucket since the last call."""
        self.switch(self._bucket)
        taken, self._spent = self._spent, dict.fromkeys(BUCKETS, 0.0)
        self._before = {bucket: self._before[bucket] + taken[bucket] for bucket in BUCKETS}
        return taken

    def total(self) -> dict[str, float]:
        """Seconds in each bucket since the start."""
        self.take()
        return dict(self._before)
