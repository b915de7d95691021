"""The flag --config FILE.py[:ARGUMENT] and its overrides --config.KEY=VALUE.

What stands behind a colon is given to `get_config`, as in `experiments/moss_9b`.

The library reads the type of a value off the config, so every documented key is put into the config
before the overrides are read: see `train.config.complete`.
"""

from collections.abc import Mapping
import inspect
import os
import re
import sys
import traceback
import types
from typing import Any, get_args, get_type_hints

from absl import flags
from ml_collections import ConfigDict, config_flags

from mossjax import paths
from mossjax.cli.common import let_import_neighbours
from mossjax.errors import InputError

NAME = 'config'
_OVERRIDE = re.compile(rf'--?(?:no)?{NAME}\.([^=]+)(?:=.*)?', re.DOTALL)
_HOW = 'start from mossjax.train.config.defaults(), change what differs, and: return config'


def define(values: flags.FlagValues, help: str) -> flags.FlagHolder:
    """Defines --config; its value is a locked ConfigDict, complete, with the overrides in it."""
    holder = config_flags.DEFINE_config_file(NAME, None, help, flag_values=values)
    values[NAME].parser = _Parser()
    return holder


class _Parser(flags.ArgumentParser):
    """Path -> config. What it raises is an InputError, which absl wraps: see `cli.main`."""

    def parse(self, argument: str) -> ConfigDict:
        file, colon, given = argument.rpartition('.py:')
        name = f'{file}.py' if colon and not os.path.exists(argument) else argument
        path = paths.file_to_read(name, f'--{NAME}')
        let_import_neighbours(path)
        config = _load(path, () if name == argument else (given,))
        from mossjax.train import config as schema
        from mossjax.train import tasks

        sections = tasks.SECTIONS.get(config.get('task'), {})
        schema.complete(config, sections)
        for key in overrides(sys.argv):
            _check_key(config, key, sections)
        return config.lock()


def overrides(args: list[str]) -> list[str]:
    """Keys that are set on a command line: ['optim.peak_lr', ...]."""
    args = args[: args.index('--')] if '--' in args else args
    return [found[1] for arg in args if (found := _OVERRIDE.fullmatch(arg))]


def _load(path, given: tuple[str, ...]) -> ConfigDict:
    shown = f'--{NAME} {paths.printable(path)}'
    module = types.ModuleType(f'{NAME}_file')
    module.__file__ = str(path)
    try:
        with paths.errors_of(path, 'read'):
            source = path.read_bytes()
        exec(compile(source, str(path), 'exec'), module.__dict__)  # noqa: S102
        make = getattr(module, 'get_config', None)
        if not callable(make):
            raise InputError(f'{shown} defines no function get_config(); {_HOW}')
        if given and not inspect.signature(make).parameters:
            raise InputError(f'{shown}: its get_config() takes nothing; leave out :{given[0]}')
        config = make(*given)
    except InputError:
        raise
    except Exception as error:  # it is Python: it can raise anything
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__)
                 if f.filename == str(path)]  # fmt: skip
        at = f', line {lines[-1]},' if lines else ''
        said = ' '.join(str(error).split())
        raise InputError(
            f'{shown}{at} cannot be used ({type(error).__name__}: {said}); correct it'
        ) from error
    if not isinstance(config, ConfigDict):
        raise InputError(f'{shown}: get_config() returned {_what(config)}, no ConfigDict; {_HOW}')
    return config


def _what(config) -> str:
    return 'nothing' if config is None else f'a value of type {type(config).__name__}'


def _check_key(config: ConfigDict, key: str, sections: Mapping[str, type]) -> None:
    """A key of the command line is one of the config's, or a new name where names are free.

    Raises:
      InputError: naming the nearest one that exists.
    """
    from mossjax.train.config import open_key, refuse_unknown

    node, above = config, []
    for name in key.split('.'):
        where = ''.join(f'{part}.' for part in above)
        if not isinstance(node, ConfigDict):
            raise InputError(f'--{NAME}.{key}: {where[:-1]} is one value, it has no keys')
        kind = _free(above, sections)
        if kind and re.fullmatch(r'[A-Za-z_]\w*', name):
            open_key(node, name, kind)
        try:
            refuse_unknown([name], node, where)
        except InputError as error:
            raise InputError(f'--{NAME}.{key}: {error}') from None
        if node[name] is None and _free([*above, name], sections):
            node[name] = ConfigDict()
        node, above = node[name], [*above, name]


def _free(above: list[str], sections: Mapping[str, type]) -> Any:
    """The type of the values of a mapping whose names the user chooses, None for another key."""
    if len(above) != 2 or above[0] not in sections:
        return None
    args = get_args(get_type_hints(sections[above[0]]).get(above[1]))
    return args[1] if len(args) == 2 and args[1] is not ... else None
