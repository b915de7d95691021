"""Compiled programs that outlive their process, and names of repositories where folders are due."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from mossjax import hub
from mossjax.cli import compiled
from mossjax.errors import InputError
from mossjax.infer import buckets, fit, many_chips
from mossjax.models.lm.config import LMConfig
from tests.tiny_chat import CONFIG, write_model

ROOT = pathlib.Path(__file__).parents[2]


def mossjax(cache, *args, typed=''):
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'XDG_CACHE_HOME': str(cache)}
    environment.pop(compiled.VARIABLE, None)
    return subprocess.run(
        [sys.executable, '-m', 'mossjax', *map(str, args)], env=environment, check=True, text=True,
        capture_output=True, input=typed,
    )  # fmt: skip


def test_the_next_start_compiles_nothing(tmp_path):
    """Everything that is compiled is kept, so nothing new in the folder is nothing compiled.

    The second question needs lanes of the next size.
    """
    config = dataclasses.replace(CONFIG, max_position_embeddings=4096)
    write_model(tmp_path / 'model', config=config)

    def kept():
        return {path.name for path in tmp_path.glob('mossjax/compiled-*/*-cache')}

    ran = mossjax(tmp_path, 'warm', '--model', tmp_path / 'model', '--rows', 2048)
    (folder,) = (tmp_path / 'mossjax').iterdir()
    assert ran.stdout == f'9 programs compiled; kept in {folder}\n'
    warm = kept()
    chat = ('chat', '--model', tmp_path / 'model', '--reply', 'text')
    first = mossjax(tmp_path, *chat, typed=f'hello you\n{"hello " * 1100}\n')
    assert f'compiled programs are kept in {folder}' in first.stderr
    assert warm and kept() == warm and first.stdout.count('\n') == 2


def test_where_programs_are_kept(tmp_path, monkeypatch):
    file = tmp_path / 'file'
    file.touch()
    for asked, said in ((tmp_path / 'mine', str(tmp_path / 'mine')), ('', 'nowhere')):
        environment = {compiled.VARIABLE: str(asked), 'XDG_CACHE_HOME': str(tmp_path)}
        assert compiled.keep(environment).startswith(said)
        assert environment[compiled.VARIABLE] == str(asked)
    monkeypatch.setenv('HOME', str(tmp_path))
    environment = {compiled.VARIABLE: '~/mine'}
    assert compiled.keep(environment) == environment[compiled.VARIABLE] == str(tmp_path / 'mine')
    monkeypatch.setattr('os.path.expanduser', lambda path: path)  # nobody has a home
    assert compiled.keep(environment := {}).startswith('nowhere') and not environment
    monkeypatch.undo()
    with pytest.raises(InputError, match='COMPILATION_CACHE_DIR .*is a file'):
        compiled.keep({compiled.VARIABLE: str(file)})
    environment = {'XDG_CACHE_HOME': str(file)}  # nobody asked, so it is no fault
    assert 'file is a file' in compiled.keep(environment) and len(environment) == 1


def test_lanes_grow_along_the_sizes_that_are_warmed():
    assert buckets.lane_sizes(5000, 40960) == [1024, 2048, 4096, 8192]
    assert buckets.lane_sizes(400, 400) == [400]
    for rows in (1, 1024, 1025, 5000):
        assert buckets.slots(rows, 40960) in buckets.lane_sizes(5000, 40960)
    assert [buckets.hearing(n) for n in (1, 8, 9, 257, 375)] == [8, 8, 16, 375, 375]


def test_int8_is_chosen_by_the_memory_there_is():
    """9.1 B parameters are 16.9 GiB in bfloat16; one row of the cache is 160 KiB."""
    config = LMConfig.released()
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12288 + 2 * 4096 + 2 * 128
    assert fit.weights(config) == 2 * (40 * layer + 2 * (151680 + 16512) * 4096 + 2 * 4096)
    assert fit.cache(config, 1) == 2 * 40 * 8 * 128 * 2
    for gib, small in ((15.75, True), (18, True), (24, False), (31.24, False)):
        assert fit.wants_int8(config, 1, round(gib * 2**30)) == small
    assert not fit.wants_int8(config, 4, round(15.75 * 2**30))
    whole, small = fit.Held(config, None, False), fit.Held(config, None, True)
    assert 'give that flag' in whole.advice(round(15.75 * 2**30))
    assert 'rows of dialogue fit' in small.advice(round(15.75 * 2**30))
    # 16.9 GiB and 2.75 for a dialogue and the rest; its 8 heads are divided by 1, 2, 4 or 8
    assert whole.advice(4 * 2**30).endswith('take a larger device, or 8 of this kind')
    assert whole.advice(5 * 2**30).endswith('or 4 of this kind')
    assert whole.advice(2**30).endswith('take a larger device')
    mesh = many_chips.mesh_for(config, jax.devices()[:2])
    said = fit.Held(config, mesh, False).advice(round(8.5 * 2**30))
    assert said.startswith('2 devices have 17.0 GiB') and '--int8 8.5; give that flag' in said


def test_a_name_stands_for_what_the_hubs_cache_has(tmp_path, monkeypatch):
    """Without a network; in the layout that huggingface_hub gives its cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    commit = 'a' * 40
    repository = tmp_path / 'hub' / 'models--Some-Team--A.Model'
    write_model(repository / 'snapshots' / commit)
    (repository / 'refs').mkdir()
    (repository / 'refs' / 'main').write_text(commit)
    monkeypatch.chdir(tmp_path)
    found = repository / 'snapshots' / commit
    assert hub.folder('Some-Team/A.Model', '--model') == found
    assert hub.folder(f'Some-Team/A.Model@{commit}', '--model') == found
    with pytest.raises(InputError, match='--model Some-Team/Other: .* cannot be reached'):
        hub.folder('Some-Team/Other', '--model')
    # a folder, and what is missing in one, is no name
    (tmp_path / 'Some-Team' / 'A.Model').mkdir(parents=True)
    assert hub.folder('Some-Team/A.Model', '--model') == pathlib.Path('Some-Team/A.Model')
    for path in ('Some-Team/Gone', 'gone', './gone/there', 'gone/deep/down'):
        with pytest.raises(InputError, match='no such folder; check the path'):
            hub.folder(path, '--model')
