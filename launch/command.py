"""How the launchers read their command line and end: as the commands of mossjax do.

Everything a launcher does not know itself is the run's: `--config.KEY=VALUE` goes to
`mossjax train` as it stands.
"""

from collections.abc import Callable
import sys

from absl import flags

from mossjax.cli.common import check_paths, flag_fault, flag_help
from mossjax.errors import InputError
from mossjax.exits import BAD_INPUT, OK


def run(
    name: str, doc: str, values: flags.FlagValues, main: Callable[[list[str], list[str]], int],
    argv: list[str],
) -> int:
    """Parses argv, calls main(arguments, overrides) and returns the exit code.

    Args:
      name: as a user calls it, 'launch.jobset'. doc: its help.
      argv: without the program's name. Arguments are what is left beside the flags, all that
        follows '--' among them; overrides are the '--config.KEY=VALUE' before that.
    """
    end = argv.index('--') if '--' in argv else len(argv)
    before, after = argv[:end], argv[end:]
    if {'--help', '-h'} & set(before):
        print(f'{name}: {doc.strip()}\n\nFlags:\n{flag_help(values)}')
        return OK
    try:
        overrides = [_complete(arg) for arg in before if arg.startswith('--config.')]
        own = [arg for arg in before if not arg.startswith('--config.')]
        _, *arguments = values([name, *own, *after])
        check_paths(values)
        return main(arguments, overrides)
    except InputError as error:
        said = str(error)
    except flags.Error as error:
        said = f'{flag_fault(error)}\npython -m {name} --help lists the flags.'
    print(f'{name}: {said}', file=sys.stderr)
    return BAD_INPUT


def _complete(override: str) -> str:
    if '=' not in override:
        raise InputError(f'{override}: write {override}=VALUE, in one word')
    return override


def say(text: str) -> None:
    """What a launcher tells its user, apart from what its job prints."""
    print(text, file=sys.stderr, flush=True)
