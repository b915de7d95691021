"""The command `mossjax`: finds the command asked for, parses its flags, reports its errors.

A command is a module beside this one: its docstring is its help, `FLAGS` holds its flags and
`main(args)` runs it on the arguments that are not flags (see `tokenize.py`). To add one, write the
module and its line in COMMANDS. Nothing here imports jax, so help is quick.
"""

import difflib
import importlib
import os
import sys
import traceback

from absl import flags, logging

from mossjax import __version__
from mossjax.cli import compiled
from mossjax.cli.common import check_paths, flag_fault, flag_help
from mossjax.errors import InputError, OutOfReach
from mossjax.exits import AGAIN, BAD_INPUT, OK, WENT_WRONG
from mossjax.files import FULL, MISSING, REFUSED
from mossjax.plan import platforms

COMMANDS = {
    'demo': 'the tour: the shipped nano model answers spoken questions, a judge listens',
    'tokenize': 'recordings to speech codes, one JSON line a file',
    'vocode': 'speech codes to recordings at 24 kHz, one a line',
    'voice': 'a recording to the voice that chat and vocode speak with',
    'rows': 'recordings, dialogues or texts to the packed rows that train reads',
    'chat': 'one question, or a dialogue, answered in speech or text',
    'warm': 'compiles what chat will need, so that its first answer does not wait',
    'convert': 'weights between Hugging Face and Orbax, with a certificate',
    'doctor': 'what is wrong with this machine, and how to mend it',
    'plan': 'whether a training step fits a TPU slice, and how long it takes, without a TPU',
    'train': 'language model or a part of the codec, from a laptop to a pod',
}

OVERVIEW = """\
mossjax {version}: MOSS-Speech in JAX, a speech-to-speech language model.

Usage: mossjax COMMAND [flags] [arguments]

Commands:
{commands}

Examples:
  mossjax tokenize --help
  mossjax tokenize --codec CODEC_DIR --out codes.jsonl question.wav

mossjax COMMAND --help shows the flags of a command and how to use it.
With --debug an error shows where it was raised.
"""

FAILED, INTERRUPTED, CLOSED_PIPE = 1, 130, 141


def run() -> None:
    """Entry point of the installed script."""
    for stream in (sys.stdout, sys.stderr):  # a name of odd bytes is no reason to fail
        stream.reconfigure(errors='backslashreplace')
    platforms.say_no_tpu()
    try:
        code = _kept(sys.argv[1:]) or main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (head, less) has seen enough; nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = CLOSED_PIPE
    sys.exit(code)


def _kept(argv: list[str]) -> int:
    """Has jax keep what the command compiles; returns an exit code if that cannot be."""
    if not argv or argv[0] not in compiled.COMMANDS:
        return OK
    try:
        compiled.keep()
    except InputError as error:
        return _report(f'{argv[0]}: {error}', BAD_INPUT)
    return OK


def main(argv: list[str]) -> int:
    """Runs one command line, without the program name, and returns its exit code."""
    if not argv or argv[0] in ('--help', '-h', '--helpfull', 'help') and len(argv) == 1:
        lines = [f'  {name:12}{what}' for name, what in COMMANDS.items()]
        print(OVERVIEW.format(version=__version__, commands='\n'.join(lines)), end='')
        return OK
    if argv[0] == '--version':
        print(f'mossjax {__version__}')
        return OK
    if argv[0] == 'help':
        argv = [*argv[1:], '--help']
    name, *rest = argv
    if name not in COMMANDS:
        return _unknown(name)
    return run_command(importlib.import_module(f'mossjax.cli.{name}'), name, rest)


def run_command(module, name: str, rest: list[str]) -> int:
    """Runs a command on what stands behind its name; returns its exit code.

    Args:
      module: of the command, or what has a docstring, `FLAGS` and `main` as one.
    """
    before = rest[: rest.index('--')] if '--' in rest else rest
    if '--help' in before or '-h' in before:
        print(f'mossjax {name}: {module.__doc__.strip()}\n\nFlags:\n{flag_help(module.FLAGS)}')
        return OK
    debug = '--debug' in before
    if debug:
        rest = [arg for arg in before if arg != '--debug'] + rest[len(before) :]
    try:
        return _guarded(module, name, rest)
    except InputError as error:
        return _report(f'{name}: {error}', BAD_INPUT, debug)
    except flags.Error as error:
        text = f'{flag_fault(error)}\nmossjax {name} --help lists the flags.'
        return _report(f'{name}: {text}', BAD_INPUT, debug)
    except OutOfReach as error:
        return _report(f'{name}: {error}', AGAIN, debug)
    except FloatingPointError as error:  # a run that diverged, which says at which step
        return _report(f'{name}: {error}', WENT_WRONG, debug)
    except (RuntimeError, AssertionError):
        # jax asks for its devices where they are first used, which may be anywhere.
        said = platforms.fault() if 'jax' in sys.modules else None
        if said is None:
            raise
        return _report(f'{name}: {said}', BAD_INPUT, debug)
    except KeyboardInterrupt:
        return _report(f'{name}: interrupted', INTERRUPTED, debug)
    except BrokenPipeError:
        raise
    except OSError as error:  # a missing permission, a full disk: the machine, not the program
        if error.errno in FULL:
            return _report(f'{name}: {error}; free space or write elsewhere', BAD_INPUT, debug)
        code = BAD_INPUT if error.errno in REFUSED | MISSING else FAILED
        return _report(f'{name}: {error} (--debug shows where)', code, debug)


def _guarded(module, name: str, rest: list[str]) -> int:
    logging.set_verbosity(logging.INFO)
    # Libraries that read absl's global flags (grain's workers) must find them parsed.
    flags.FLAGS.mark_as_parsed()
    # Config flags look for their overrides, --config.key=value, in sys.argv.
    sys.argv = [f'mossjax {name}', *rest]
    module.FLAGS.set_gnu_getopt(True)  # flags may also follow arguments
    try:
        _, *args = module.FLAGS(sys.argv)
    except flags.Error as error:
        if isinstance(error.__context__, InputError):  # of a flag's own parser: it says all
            raise error.__context__ from None
        raise
    check_paths(module.FLAGS)
    return module.main(args) or OK


def _unknown(name: str) -> int:
    close = difflib.get_close_matches(name, COMMANDS)
    hint = f'Did you mean {" or ".join(close)}? ' if close else ''
    return _report(f'has no command {name!r}. {hint}mossjax --help lists all commands.', BAD_INPUT)


def _report(message: str, code: int, debug: bool = False) -> int:
    if debug:
        traceback.print_exc()
    print(f'mossjax {message}', file=sys.stderr)
    return code
