"""Where compiled programs are kept, so that the next start of a command compiles nothing."""

from collections.abc import MutableMapping
import hashlib
import os
from pathlib import Path
import platform

from mossjax import paths
from mossjax.errors import InputError

VARIABLE = 'JAX_COMPILATION_CACHE_DIR'
# By default jax keeps only what took a second to compile.
_EVERYTHING = {
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
}
COMMANDS = frozenset({'chat', 'demo', 'rows', 'tokenize', 'vocode', 'voice', 'warm'})


def keep(environment: MutableMapping[str, str] = os.environ) -> str:
    """Tells jax, by its own variables, where to keep programs; call it before jax is imported.

    A folder named by JAX_COMPILATION_CACHE_DIR is taken; if that is set and empty, none is.

    Returns:
      the folder, or why there is none.

    Raises:
      InputError: the folder that was asked for takes no files.
    """
    asked = environment.get(VARIABLE)
    if asked == '':
        return f'nowhere ({VARIABLE} is empty)'
    folder = asked or default_folder(environment)
    if folder is None:
        return 'nowhere (there is no home folder)'
    if asked is not None and '://' not in asked:
        folder = paths.folder_to_write(asked, VARIABLE)
    if asked is None:
        try:
            paths.folder_to_write(folder, 'the folder for compiled programs')
        except InputError as error:
            return f'nowhere: {error}'
    environment[VARIABLE] = str(folder)
    for name, value in _EVERYTHING.items():
        environment.setdefault(name, value)
    return str(folder)


def default_folder(environment: MutableMapping[str, str]) -> Path | None:
    """In the user's cache, apart for every kind of CPU; None without a home.

    Home folders are shared between machines, and a program for one CPU may not run on another.
    """
    folder = paths.user_folder('XDG_CACHE_HOME', '~/.cache', environment)
    return folder and folder / 'mossjax' / f'compiled-{_cpu()}'


def _cpu() -> str:
    try:
        with open('/proc/cpuinfo') as file:
            flags = next((line for line in file if line.startswith(('flags', 'Features'))), '')
    except OSError:
        flags = ''
    return hashlib.sha256(f'{platform.machine()} {flags}'.encode()).hexdigest()[:12]
