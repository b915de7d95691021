"""Every flag of every command that takes a path is checked by the one rule, before work starts."""

import importlib

import pytest

from mossjax.cli import common
from mossjax.cli import main as cli

# Flags with text that is no path; anything else with text must be a path flag.
WORDS = {'text', 'system', 'reply', 'rules', 'dtype', 'recipe', 'only'}
PARSED = {('train', 'config'), ('plan', 'config')}  # with overrides behind it, see test_train
WRITES = {common.WRITE_FILE, common.WRITE_FOLDER, common.WRITE_FOLDER_OR_BUCKET}
FILES = {common.READ_FILE, common.WRITE_FILE}
REQUIRED = {'chat': ['model'], 'tokenize': ['codec', 'out'], 'train': ['workdir'],
            'rows': ['model', 'out'], 'voice': ['codec', 'out'],
            'vocode': ['codec', 'codes', 'out'], 'warm': ['model']}


def command(name):
    return importlib.reload(importlib.import_module(f'mossjax.cli.{name}'))


def path_flags(name):
    values = command(name).FLAGS
    return {flag: values[flag].parser.check for flag in values
            if isinstance(values[flag].parser, common._PathParser)}


CASES = [(name, flag) for name in cli.COMMANDS for flag in path_flags(name)]


@pytest.fixture
def refused(tmp_path, capsys):
    """refused(command, flag, path) -> the message; every other path flag gets a good path."""
    (tmp_path / 'file').write_text('x')
    (tmp_path / 'folder').mkdir()

    def run(name, flag, path):
        checks = path_flags(name)
        good = {
            f: tmp_path / ('file' if checks[f] in FILES else 'folder')
            for f in REQUIRED.get(name, []) if f in checks
        }
        before = set(tmp_path.rglob('*'))
        code = cli.main([name, *(f'--{f}={p}' for f, p in {**good, flag: path}.items())])
        said = capsys.readouterr()
        assert code == 2 and said.out == '' and 'Traceback' not in said.err, said
        assert set(tmp_path.rglob('*')) == before
        return said.err

    return run


@pytest.mark.parametrize('name, flag', CASES)
@pytest.mark.parametrize('kind', ['s3', 'https', 'empty', 'loop', 'below a file', 'other kind'])
def test_bad_paths_are_refused_by_the_name_of_the_flag(tmp_path, refused, name, flag, kind):
    (tmp_path / 'loop').symlink_to('loop')
    file = path_flags(name)[flag] in FILES
    path = {
        's3': 's3://bucket/x', 'https': 'https://host/x', 'empty': '', 'loop': tmp_path / 'loop',
        'below a file': tmp_path / 'file' / 'x',
        'other kind': tmp_path / ('folder' if file else 'file'),
    }[kind]
    if kind == 'other kind' and not file:
        (tmp_path / 'file').touch()
    assert f'--{flag}' in refused(name, flag, path)


@pytest.mark.parametrize('name, flag', CASES)
def test_a_bucket_is_reached_or_refused_and_never_a_folder_called_gs(
    tmp_path, refused, monkeypatch, name, flag
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('importlib.util.find_spec', lambda *_: None)
    said = refused(name, flag, 'gs://bucket/x')
    bucket = path_flags(name)[flag] is common.WRITE_FOLDER_OR_BUCKET
    assert f'--{flag}' in said and ('mossjax[gcs]' if bucket else 'gcloud storage cp') in said


@pytest.mark.parametrize(
    'name, flag', [case for case in CASES if path_flags(case[0])[case[1]] in WRITES]
)
def test_a_place_that_takes_no_files_is_found_at_the_start(refused, name, flag):
    assert '/proc takes no files' in refused(name, flag, '/proc/x')


def test_no_text_flag_is_left_out():
    for name in cli.COMMANDS:
        values = command(name).FLAGS
        texts = {flag for flag in values if values[flag].flag_type() in ('string', 'string enum')}
        texts -= {*path_flags(name), *(flag for of, flag in PARSED if of == name)}
        texts -= {f for f in texts if isinstance(values[f].parser, common._NumberParser)}
        assert texts <= WORDS, f'{name}: {texts - WORDS}: make it a path flag, or one of WORDS'
