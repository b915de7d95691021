"""What several commands need."""

from collections.abc import Callable
import functools
import pathlib
import re
import sys
import textwrap

from absl import flags

from mossjax import hub, paths, values

# How a path flag is checked before its command starts: (path, name of the flag) -> the path.
READ_FILE, READ_FOLDER = paths.file_to_read, paths.folder_to_read
WRITE_FILE, WRITE_FOLDER = paths.file_to_write, paths.folder_to_write
AUTO = 'auto'
READ_MODEL = hub.folder  # or a repository of Hugging Face
WRITE_FOLDER_OR_BUCKET = functools.partial(paths.folder_to_write, buckets=True)


class _PathParser(flags.ArgumentParser):
    """Takes any text; the check runs once all flags are parsed, so that --help never needs it."""

    def __init__(self, check: Callable):
        self.check = check

    def parse(self, argument: str) -> str:
        return argument


def path_flag(
    name: str, default: str | None, help: str, check: Callable, flag_values: flags.FlagValues,
    required: bool = False,
) -> flags.FlagHolder:
    """A flag that takes a path, checked by the one rule of `paths`.

    Args:
      check: READ_FILE, READ_FOLDER, READ_MODEL, WRITE_FILE, WRITE_FOLDER, WRITE_FOLDER_OR_BUCKET.
    """
    return flags.DEFINE(
        _PathParser(check), name, default, help, flag_values=flag_values, required=required
    )


def check_paths(flag_values: flags.FlagValues) -> None:
    """Checks every path flag that is set; its value is then the path to use.

    Raises:
      InputError: of the first that is not good.
    """
    given = [
        flag for flag in map(flag_values.__getitem__, flag_values)
        if isinstance(flag.parser, _PathParser) and flag.value is not None
    ]
    for flag in sorted(given, key=_downloads):  # what may take long comes last
        flag.value = str(flag.parser.check(flag.value, f'--{flag.name}'))


def _downloads(flag: flags.Flag) -> bool:
    return flag.parser.check is READ_MODEL and hub.names_repository(flag.value)


class _NumberParser(flags.ArgumentParser):
    """Takes numbers in a range; absl's own parsers let nan and numbers of any size through."""

    def __init__(self, accepted: values.Range):
        self.accepted = accepted
        self.syntactic_help = str(accepted)

    def parse(self, argument: str | int | float) -> int | float:
        try:
            value = int(argument) if self.accepted.whole else float(argument)
        except (TypeError, ValueError, OverflowError):
            value = argument
        if value not in self.accepted:
            raise ValueError(f'expected {self.accepted}')
        return value


def number_flag(
    name: str, default: int | float | None, help: str, accepted: values.Range,
    flag_values: flags.FlagValues,
) -> flags.FlagHolder:
    """A flag that takes a number in a range."""
    return flags.DEFINE(
        _NumberParser(accepted), name, default, help, flag_values=flag_values,
        serializer=flags.ArgumentSerializer(),
    )


class _AutoParser(flags.BooleanParser):
    """Takes 'auto' as well."""

    syntactic_help = 'true, false or auto'

    def parse(self, argument: str | bool) -> str | bool:
        return argument if argument == AUTO else super().parse(argument)


def auto_flag(name: str, help: str, flag_values: flags.FlagValues) -> flags.FlagHolder:
    """A flag that is on (--name), off (--noname) or, by default, AUTO."""
    flag = flags.Flag(
        _AutoParser(), flags.ArgumentSerializer(), name, AUTO, help, boolean=True
    )
    return flags.DEFINE_flag(flag, flag_values)


def flag_help(flag_values: flags.FlagValues) -> str:
    """The flags of one command in the order they were defined."""
    lines = []
    for flag in {id(flag_values[name]): flag_values[name] for name in flag_values}.values():
        default = '' if flag.default is None else f' (default: {flag.default_as_str})'
        lines.append(f'  --{flag.name}')
        lines += textwrap.wrap(
            f'{flag.help}{default}', 90, initial_indent=' ' * 6, subsequent_indent=' ' * 6
        )
    return '\n'.join(lines)


def flag_fault(error: flags.Error) -> str:
    """What to tell a user whose flags could not be read."""
    text = re.sub(r'flag --(\w+)=None: .*', r'flag --\1 is required', str(error))
    return re.sub(r'Traceback \(.*\n( .*\n)*', '', text).strip()  # of a config file


def let_import_neighbours(path: pathlib.Path) -> None:
    """Lets a config file import its neighbours by the names they have in their repository.

    A config of `experiments` says `from experiments...`, wherever the command is given.
    """
    folder = path.resolve().parent
    while (folder / '__init__.py').is_file():
        folder = folder.parent
    sys.path.append(str(folder))
