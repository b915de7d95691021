"""The command line as a user meets it: help, exit codes, errors without tracebacks."""

import importlib
import pathlib
import subprocess
import sys

import pytest

from mossjax import __version__
from mossjax.cli import main as cli

ROOT = pathlib.Path(__file__).parents[2]


def _mossjax(*args, **kwargs):
    return subprocess.run(
        [sys.executable, '-X', 'importtime', '-m', 'mossjax', *args],
        capture_output=True, text=True, cwd=ROOT, timeout=60, **kwargs,
    )


@pytest.fixture(autouse=True)
def _flags_as_at_the_start():
    """A process runs one command; here other tests of the same process may have set its flags."""
    flags = importlib.import_module('mossjax.cli.tokenize').FLAGS
    for name in flags:
        flags[name].unparse()


def _imported(stderr):
    lines = [line for line in stderr.splitlines() if line.startswith('import time:')]
    return {line.rsplit('|', 1)[1].strip() for line in lines}


def test_help_of_a_process_is_quick_and_goes_to_stdout():
    done = _mossjax('tokenize', '--help')
    assert done.returncode == 0
    assert '--codec' in done.stdout and 'Examples:' in done.stdout
    imported = _imported(done.stderr)
    assert 'absl.flags' in imported  # the reading of -X importtime works
    assert not imported & {'jax', 'flax', 'soundfile', 'librosa', 'tqdm'}


def test_a_refusal_ends_the_process_with_2_and_one_message():
    done = _mossjax('tokenize', '--codec', '.', '--out', 'x.jsonl', 'missing.wav')
    said = [line for line in done.stderr.splitlines() if not line.startswith('import time:')]
    assert done.returncode == 2
    assert said == ['mossjax tokenize: recording missing.wav: no such file; check the path']
    assert done.stdout == ''


def test_without_a_tpu_its_library_says_nothing(tmp_path):
    import soundfile

    from mossjax.infer.assets import shipped

    soundfile.write(tmp_path / 'a.wav', [0.25, -0.25] * 1000, 16000)
    done = subprocess.run(
        [sys.executable, '-m', 'mossjax', 'tokenize', '--codec', shipped() / 'codec',
         '--out', tmp_path / 'codes.jsonl', tmp_path / 'a.wav'],
        capture_output=True, text=True, cwd=ROOT, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0 and (tmp_path / 'codes.jsonl').exists()
    assert 'libtpu' not in done.stderr and 'TPU_' not in done.stderr, done.stderr


def test_a_reader_that_has_seen_enough_ends_the_command_without_a_word():
    process = subprocess.Popen(
        [sys.executable, '-m', 'mossjax', 'train', '--help'],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
    )
    process.stdout.close()  # as `head` does, only sooner
    assert process.communicate(timeout=60)[1] == b''
    assert process.returncode == 141  # what a shell shows of a program that SIGPIPE ended


@pytest.mark.parametrize('argv', [[], ['--help'], ['-h'], ['help']])
def test_the_overview_lists_every_command_with_its_line(argv, capsys):
    assert cli.main(argv) == 0
    shown = capsys.readouterr().out
    for name, what in cli.COMMANDS.items():
        assert f'  {name:12}{what}\n' in shown
    assert 'Examples:' in shown and __version__ in shown


@pytest.mark.parametrize('name', cli.COMMANDS)
def test_the_help_of_each_command_teaches(name, capsys):
    module = importlib.import_module(f'mossjax.cli.{name}')
    assert cli.main([name, '--help']) == 0
    shown = capsys.readouterr().out
    assert f'mossjax {name} ' in shown and 'Examples:' in shown
    listed = [line[4:] for line in shown.splitlines() if line.startswith('  --')]
    assert listed == list(module.FLAGS)  # its own flags, all of them, and no other's
    assert cli.main(['help', name]) == 0
    assert capsys.readouterr().out == shown


def test_version(capsys):
    assert cli.main(['--version']) == 0
    assert capsys.readouterr().out == f'mossjax {__version__}\n'


def test_an_unknown_command_is_answered_with_the_closest(capsys):
    assert cli.main(['tokenise']) == 2
    assert 'Did you mean tokenize?' in capsys.readouterr().err
    assert cli.main(['xyzzy']) == 2
    error = capsys.readouterr().err
    assert 'Did you mean' not in error and 'mossjax --help' in error


@pytest.mark.parametrize(
    'argv, message',
    [
        (['--cdec', 'x'], "Unknown command line flag 'cdec'"),
        (['a.wav'], 'flag --codec is required'),
        (['--out'], 'Missing value for flag --out'),
    ],
)
def test_flag_errors_exit_with_2_and_point_to_help(argv, message, capsys):
    assert cli.main(['tokenize', *argv]) == 2
    error = capsys.readouterr().err
    assert message in error and 'mossjax tokenize --help' in error and 'Traceback' not in error


class _Command:
    """A command that raises, in place of tokenize: what the dispatcher makes of it is tested."""

    def __init__(self, error):
        from absl import flags

        self.FLAGS, self.error = flags.FlagValues(), error

    def main(self, args):
        raise self.error


@pytest.mark.parametrize(
    'error, code',
    [
        (KeyboardInterrupt(), 130),
        (OSError(28, 'No space left on device', 'out.wav'), 2),
        (OSError(13, 'Permission denied', 'out.wav'), 2),
        (OSError(5, 'Input/output error', 'out.wav'), 1),
    ],
)
@pytest.mark.parametrize('debug', [False, True])
def test_interrupts_and_machine_errors(error, code, debug, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'mossjax.cli.tokenize', _Command(error))
    assert cli.main(['tokenize'] + ['--debug'] * debug) == code
    said = capsys.readouterr().err
    assert ('Traceback' in said) == debug
    text = 'interrupted' if code == 130 else f"{error.strerror}: 'out.wav'"
    assert text in said and ('free space' in said) == ('No space' in said)


def test_a_bug_is_not_hidden(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mossjax.cli.tokenize', _Command(ZeroDivisionError('bug')))
    with pytest.raises(ZeroDivisionError):
        cli.main(['tokenize'])


def test_a_config_imports_its_neighbours_wherever_the_command_is_given(tmp_path):
    package = tmp_path / 'clone' / 'trials' / 'configs'
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / '__init__.py').write_text('')
    (package / 'common.py').write_text('STEPS = "from the neighbour"\n')
    (package / 'mine.py').write_text(
        'from trials.configs import common\n\n\n'
        'def get_config():\n    raise ValueError(common.STEPS)\n'
    )
    code = 'import sys; from mossjax.cli import main; sys.exit(main.main(sys.argv[1:]))'
    for given in (['--config', package / 'mine.py'], [f'--config={package / "mine.py"}']):
        done = subprocess.run(
            [sys.executable, '-c', code, 'train', *map(str, given), '--workdir', 'run'],
            capture_output=True, text=True, cwd=tmp_path, timeout=60,
        )
        assert done.returncode == 2 and 'from the neighbour' in done.stderr
