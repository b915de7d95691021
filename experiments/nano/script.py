"""How the scripts of the nano recipe start."""

from collections.abc import Callable, Sequence
import sys

from absl import app

from mossjax.errors import InputError


def start(main: Callable[[], None]) -> None:
    """Parses the flags, runs main, and reports bad input without a traceback (exit code 2)."""

    def guarded(argv: Sequence[str]) -> None:
        try:
            if len(argv) > 1:
                raise InputError(f'unexpected argument {argv[1]!r}; --help lists the flags')
            main()
        except InputError as error:
            sys.stderr.write(f'error: {error}\n')
            sys.exit(2)
        except FloatingPointError as error:  # a run that diverged
            sys.stderr.write(f'error: {error}\n')
            sys.exit(1)

    app.run(guarded)
