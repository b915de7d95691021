"""Lines of a dialogue on a terminal (a pty) and piped in."""

import io
import os
import pathlib
import subprocess
import sys

import pytest

from mossjax.cli import lines
from mossjax.errors import InputError
from tests.terminal import END, HOME, RIGHT, ROOT, UP, Terminal

# Standard output gets each line, and standard error says that it has.
ECHO = """
import sys
from mossjax.cli import lines
for line in lines.read():
    print(ascii(line), flush=True)
    print('got it', file=sys.stderr)
"""


def answered(terminal, typed):
    terminal.wait_for('you> ')
    terminal.type(typed)
    return terminal.wait_for('got it')


def test_a_terminal_edits_and_remembers_and_shows_nothing_of_it_on_standard_output(tmp_path):
    with Terminal(tmp_path, ECHO) as terminal:
        terminal.wait_for('you> ')
        terminal.type('  \r\r')  # neither is a line
        terminal.wait_for('you> ')
        answered(terminal, f'hllo{HOME}{RIGHT}e\r')
        terminal.wait_for('you> ')
        terminal.type('not this')
        terminal.wait_for('not this')
        terminal.interrupt()
        terminal.wait_for('Ctrl-D or /quit ends the dialogue')
        answered(terminal, f'{UP} you\r')
        terminal.wait_for('you> ')
        terminal.type(END)
        assert terminal.end() == 0
        assert terminal.output.read_text() == "'hello'\n'hello you'\n"
        assert terminal.shown.endswith('\r\n')  # the shell's prompt does not follow on the line
    file = tmp_path / 'state/mossjax/chat_history'
    assert file.read_text().splitlines()[-2:] == ['hello', 'hello you']
    assert file.stat().st_mode & 0o077 == 0  # nobody else's business
    with Terminal(tmp_path, ECHO) as terminal:  # the next day
        answered(terminal, f'{UP}{UP} again\r')
        terminal.type('/quit\rnot asked\r')
        assert terminal.end() == 0
        assert terminal.output.read_text() == "'hello again'\n"


@pytest.mark.parametrize('how', ['no readline', 'no folder', 'no home'])
def test_a_terminal_without_history_works_silently(how, tmp_path):
    (tmp_path / 'file').touch()
    code, environment = ECHO, {'XDG_STATE_HOME': str(tmp_path / 'file')}
    if how == 'no readline':
        code = f"import sys; sys.modules['readline'] = None{ECHO}"
    elif how == 'no home':
        code = f"import os; os.path.expanduser = lambda path: path{ECHO}"
        environment = {'XDG_STATE_HOME': 'relative'}
    with Terminal(tmp_path, code, **environment) as terminal:
        answered(terminal, 'hello\r')
        terminal.wait_for('you> ')
        terminal.type(END)
        assert terminal.end() == 0
        assert terminal.output.read_text() == "'hello'\n"
        assert 'rror' not in terminal.shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'output.txt']


def test_the_history_is_in_the_home_folder_by_default(monkeypatch):
    monkeypatch.setenv('HOME', '/a/home')
    for base in ('', 'relative'):
        monkeypatch.setenv('XDG_STATE_HOME', base)
        expected = pathlib.Path('/a/home/.local/state/mossjax/chat_history')
        assert lines.history_file() == expected


def piped(content: bytes) -> bytes:
    """What the lines are, and that nothing else is said."""
    done = subprocess.run(
        [sys.executable, '-c', ECHO], input=content, capture_output=True, cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONUTF8': '1'}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == b'got it\n' * done.stdout.count(b'\n')
    return done.stdout


def test_piped_lines_are_read_to_the_end():
    content = b'\xef\xbb\xbfone\r\n\n \t \n\xc2\xa0\ntwo \n\x1b[A\n\x80.wav\n\nlast'
    assert piped(content) == b"'one'\n'two'\n'\\x1b[A'\n'\\udc80.wav'\n'last'\n"
    assert piped(b'one\n/quit\ntwo\n') == b"'one'\n"
    assert piped(b'\n\n') == b''


def test_no_standard_input_is_no_lines(monkeypatch):
    monkeypatch.setattr('sys.stdin', None)
    assert list(lines.read()) == [] and not lines.terminal()
    monkeypatch.setattr('sys.stdin', io.StringIO('one\n\ntwo'))
    assert list(lines.read()) == ['one', 'two']


def test_words():
    assert lines.words(' a b\u00e9', '--text') == ' a b\u00e9'
    blank, bytes_ = 'is empty', 'is not text in UTF-8'
    for bad, said in (('', blank), (' \t\u00a0', blank), ('a\udc80', bytes_)):
        with pytest.raises(InputError, match=f'^--text {said}'):
            lines.words(bad, '--text')
