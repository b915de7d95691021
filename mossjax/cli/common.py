"""What several commands need."""

from collections.abc import Callable, Sequence
import textwrap

from absl import flags

from mossjax.errors import InputError

SHOWN = 10


def flag_help(values: flags.FlagValues) -> str:
    """The flags of one command in the order they were defined."""
    lines = []
    for flag in {id(values[name]): values[name] for name in values}.values():
        default = '' if flag.default is None else f' (default: {flag.default_as_str})'
        lines.append(f'  --{flag.name}')
        lines += textwrap.wrap(
            f'{flag.help}{default}', 90, initial_indent=' ' * 6, subsequent_indent=' ' * 6
        )
    return '\n'.join(lines)


def check_all(check: Callable, items: Sequence) -> list:
    """[check(item) for each item], with the refusals of all bad items in one message.

    Raises:
      InputError: one or more items were refused.
    """
    results, refusals = [], []
    for item in items:
        try:
            results.append(check(item))
        except InputError as error:
            refusals.append(str(error))
    if not refusals:
        return results
    if len(refusals) == 1:
        raise InputError(refusals[0])
    shown = '\n'.join(f'  {refusal}' for refusal in refusals[:SHOWN])
    more = f'\n  and {len(refusals) - SHOWN} more' if len(refusals) > SHOWN else ''
    raise InputError(f'{len(refusals)} of {len(items)} inputs cannot be used:\n{shown}{more}')
