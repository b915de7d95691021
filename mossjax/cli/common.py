"""What several commands need."""

from collections.abc import Callable, Sequence
import functools
import pathlib
import sys
import textwrap

from absl import flags

from mossjax import paths
from mossjax.errors import InputError

SHOWN = 10


# How a path flag is checked before its command starts: (path, name of the flag) -> the path.
READ_FILE, READ_FOLDER = paths.file_to_read, paths.folder_to_read
WRITE_FILE, WRITE_FOLDER = paths.file_to_write, paths.folder_to_write
WRITE_FOLDER_OR_BUCKET = functools.partial(paths.folder_to_write, buckets=True)


class _PathParser(flags.ArgumentParser):
    """Takes any text; the check runs once all flags are parsed, so that --help never needs it."""

    def __init__(self, check: Callable):
        self.check = check

    def parse(self, argument: str) -> str:
        return argument


def path_flag(
    name: str, default: str | None, help: str, check: Callable, values: flags.FlagValues,
    required: bool = False,
) -> flags.FlagHolder:
    """A flag that takes a path, checked by the one rule of `paths`.

    Args:
      check: READ_FILE, READ_FOLDER, WRITE_FILE, WRITE_FOLDER, WRITE_FOLDER_OR_BUCKET.
    """
    return flags.DEFINE(
        _PathParser(check), name, default, help, flag_values=values, required=required
    )


def check_paths(values: flags.FlagValues) -> None:
    """Checks every path flag that is set; its value is then the path to use.

    Raises:
      InputError: of the first that is not good.
    """
    for name in values:
        flag = values[name]
        if isinstance(flag.parser, _PathParser) and flag.value is not None:
            flag.value = str(flag.parser.check(flag.value, f'--{flag.name}'))


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


def let_import_neighbours(path: pathlib.Path) -> None:
    """Lets a config file import its neighbours by the names they have in their repository.

    A config of `experiments` says `from experiments...`, wherever the command is given.
    """
    folder = path.resolve().parent
    while (folder / '__init__.py').is_file():
        folder = folder.parent
    sys.path.append(str(folder))
