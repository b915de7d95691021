"""Lines of a dialogue: typed on a terminal, with editing and a history, or piped in.

Prompts and what is edited go to standard error, so that standard output holds answers alone.
"""

from collections.abc import Iterator
import contextlib
import io
import os
import pathlib
import sys

from mossjax import paths
from mossjax.errors import InputError

END = '/quit'
PROMPT = 'you> '
HISTORY_LINES = 1000


def terminal() -> bool:
    """Whether somebody types the lines."""
    return sys.stdin is not None and sys.stdin.isatty()


def read() -> Iterator[str]:
    """What is typed or piped in, line by line, without blank ones, up to END or the end of input.

    Bytes that are no text come as surrogates, as they do in arguments: a name may have any.
    """
    if sys.stdin is None:  # closed by whoever started this
        return
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors='surrogateescape')
    with history() if terminal() else contextlib.nullcontext():
        for line in _typed() if terminal() else sys.stdin:
            line = line.lstrip('\ufeff').strip()
            if line == END:
                return
            if line:
                yield line


def words(text: str, name: str) -> str:
    """`text` itself, if it is text and not blank.

    Raises:
      InputError: it is not, said of `name`.
    """
    if not text.strip():
        raise InputError(f'{name} is empty; write some words')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f'{name} is not text in UTF-8; convert it (iconv -t UTF-8)') from None
    return text


def _typed() -> Iterator[str]:
    while True:
        try:
            yield _edited(PROMPT)
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            print(f'\nCtrl-D or {END} ends the dialogue', file=sys.stderr)


def _edited(prompt: str) -> str:
    """One line from the terminal.

    Both `input` and readline write to file descriptor 1, so that is made standard error for the
    time being. Where only standard output is the terminal, it stays: there is no editing without.
    """
    sys.stdout.flush()
    if os.isatty(1) and not os.isatty(2):
        return input(prompt)
    output = os.dup(1)
    os.dup2(2, 1)
    try:
        return input(prompt)
    finally:
        sys.stdout.flush()
        os.dup2(output, 1)
        os.close(output)


@contextlib.contextmanager
def history() -> Iterator[None]:
    """Lines can be edited and called back, also those of earlier dialogues.

    They are kept in a file of the user's own; where that cannot be, in memory, and without the
    library there is neither.
    """
    try:
        import readline
    except ImportError:
        yield
        return
    path = history_file()
    readline.set_history_length(HISTORY_LINES)
    if path is None:
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            readline.write_history_file(path)


def history_file() -> pathlib.Path | None:
    """With what a program may lose; None without home."""
    folder = paths.user_folder('XDG_STATE_HOME', '~/.local/state')
    return folder and folder / 'mossjax' / 'chat_history'
