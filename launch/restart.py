"""The restart rule: what becomes of a job, told from how its hosts ended.

    any host 2 or 3, or its command cannot be run    failed: it would end the same way again
    any host 75, ended by a signal, or gone          again, all hosts
    any host 1: an exception that nothing caught     failed
    all hosts 0                                      done

A job is one program on all its hosts: once one of them has ended other than by 0, the rest cannot
go on. They are told to stop (SIGTERM), given time, and killed. Only hosts that ended by themselves
are asked for their codes: what the rest end with is a consequence.

`jobset` writes the same rule as policies of Kubernetes, host by host.
"""

from collections.abc import Iterable
import enum

from mossjax.exits import AGAIN, BAD_INPUT, OK, WENT_WRONG

# The code of a host that cannot be asked any more: its machine is gone.
LOST = None
# An exception that nothing caught; a command that cannot be run, or is not there (sh's codes).
UNCAUGHT, NOT_EXECUTABLE, NOT_FOUND = 1, 126, 127
FINAL = (BAD_INPUT, WENT_WRONG, NOT_EXECUTABLE, NOT_FOUND)
# Restarts of one job, whatever their cause: a job that dies at each start must end some day.
MAX_RESTARTS = 30


class Decision(enum.Enum):
    DONE = 'done'
    FAILED = 'failed'
    AGAIN = 'again'


def decision(codes: Iterable[int | None]) -> Decision:
    """What becomes of a job.

    Args:
      codes: of each host that ended by itself: an exit code; a signal as `subprocess` (-9) or a
        shell (137) spells it; LOST.
    """
    codes = set(codes)
    if codes & set(FINAL):
        return Decision.FAILED
    if codes - {OK, UNCAUGHT}:
        return Decision.AGAIN
    return Decision.FAILED if UNCAUGHT in codes else Decision.DONE


def exit_code(codes: Iterable[int | None]) -> int:
    """What a launcher ends with when its job has ended so."""
    codes = set(codes)
    what = decision(codes)
    if what is Decision.FAILED:
        return next(code for code in (*FINAL, UNCAUGHT) if code in codes)
    return OK if what is Decision.DONE else AGAIN


def spelled(code: int | None) -> str:
    """A code for people: 'exit code 75', 'signal 9', 'gone'."""
    if code is LOST:
        return 'gone'
    number = -code if code < 0 else code - 128 if code > 128 else 0
    return f'signal {number}' if number else f'exit code {code}'
