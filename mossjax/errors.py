"""What is not the program's fault: the input's, of one or many, or the network's."""

from collections.abc import Callable, Sequence
import concurrent.futures
from typing import TypeVar

Item, Result = TypeVar('Item'), TypeVar('Result')
SHOWN = 10  # refusals that a message spells out


class InputError(ValueError):
    """Bad input from a user: a file, a flag, a config value, a tensor.

    The message names the thing at fault and what to do about it. The command line prints it
    without a traceback and exits with code 2.
    """


class OutOfReach(Exception):
    """A place on the network that does not answer now, and may later.

    The command line prints it and exits with code 75: whoever started the command starts it again.
    """


def sift(
    check: Callable[[Item], Result], items: Sequence[Item], threads: int = 1
) -> tuple[list[tuple[Item, Result]], list[str]]:
    """The items that pass with what `check` gives for each, and why the others do not.

    Args:
      threads: items checked at once, where most of it is waiting for a disk.
    """

    def checked(item: Item) -> tuple[Result | None, str]:
        try:
            return check(item), ''
        except InputError as error:
            return None, str(error)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        found = list((pool.map if threads > 1 else map)(checked, items))
    good = [(item, result) for item, (result, why) in zip(items, found, strict=True) if not why]
    return good, [why for _, why in found if why]


def refusal(refusals: Sequence[str], total: int, what: str) -> InputError:
    """One error for the bad ones of `total` inputs.

    Args:
      what: became of them, e.g. 'inputs cannot be used'.
    """
    if total == 1:
        return InputError(refusals[0])
    shown = '\n'.join(f'  {text}' for text in refusals[:SHOWN])
    more = f'\n  and {len(refusals) - SHOWN} more' if len(refusals) > SHOWN else ''
    return InputError(f'{len(refusals)} of {total} {what}:\n{shown}{more}')


def one_or_all(refusals: Sequence[str], total: int, what: str) -> InputError:
    """As `refusal`, of inputs whose messages say where they stand: one alone is not counted."""
    return refusal(refusals, 1 if len(refusals) == 1 else total, what)


def check_all(
    check: Callable[[Item], Result], items: Sequence[Item], threads: int = 1
) -> list[Result]:
    """[check(item) for each item], with the refusals of all bad items in one message.

    Raises:
      InputError: one or more items were refused.
    """
    good, refusals = sift(check, items, threads)
    if refusals:
        raise refusal(refusals, len(items), 'inputs cannot be used')
    return [result for _, result in good]
