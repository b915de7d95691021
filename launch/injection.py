"""Signals sent to hosts of a local job on purpose: `--kill WHEN:HOST`, `--term WHEN:HOST`."""

import dataclasses
import re
import signal

from mossjax.errors import InputError

# How training reports a step, in its log (`train.loop`).
STEP = re.compile(r'\bstep (\d+)/\d+')


@dataclasses.dataclass(frozen=True)
class Injection:
    """One signal, sent once in the life of a job.

    Attributes:
      signal: SIGKILL or SIGTERM.
      host: its number; None: all of them.
      seconds: after the hosts were started, of whichever attempt; or
      step: once the log of a host reports it, or a later one; or
      text: once a host prints a line with it.
    """

    signal: signal.Signals
    host: int | None
    seconds: float | None = None
    step: int | None = None
    text: str | None = None

    def due(self, line: str) -> bool:
        """Whether this line of output is what it waits for."""
        if self.text is not None:
            return self.text in line
        found = STEP.search(line)
        return self.step is not None and bool(found) and int(found.group(1)) >= self.step

    def __str__(self) -> str:
        when = f'{self.seconds:g} s' if self.seconds is not None else f'step {self.step}'
        when = repr(self.text) if self.text is not None else when
        to = 'all hosts' if self.host is None else f'host {self.host}'
        return f'{self.signal.name} to {to} at {when}'


def parse(given: str, number: signal.Signals, hosts: int) -> Injection:
    """'7:1' at step 7 to host 1; '7s:1' after 7 seconds; '@saving:all' at a line with 'saving'.

    Raises:
      InputError: it is none of these.
    """
    flag = '--kill' if number == signal.SIGKILL else '--term'
    when, _, who = given.rpartition(':')
    if who != 'all' and not (who.isascii() and who.isdigit() and int(who) < hosts):
        raise InputError(
            f'{flag} {given}: the host, after the last colon, is 0 to {hosts - 1}, or all'
        )
    host = None if who == 'all' else int(who)
    if when.startswith('@') and len(when) > 1:
        return Injection(number, host, text=when[1:])
    if re.fullmatch(r'\d+', when, re.ASCII):
        return Injection(number, host, step=int(when))
    if re.fullmatch(r'\d+(\.\d+)?s', when, re.ASCII):
        return Injection(number, host, seconds=float(when[:-1]))
    raise InputError(
        f'{flag} {given}: before the host say when: a step (7), seconds (7s), or @TEXT of a line '
        'that a host prints'
    )
