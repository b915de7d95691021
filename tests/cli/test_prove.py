"""`mossjax train --prove_resume`: what is the same is found so, what differs is named."""

import contextlib
import io
import json
import re
import shutil

import pytest

from mossjax.cli import prove
from tests.cli.test_bad_input import mossjax, refused

# The smallest task, known to every process that reads the config.
CONFIG = """
from mossjax.train import starts, tasks
from mossjax.train.config import defaults
from tests.train.toy_task import ToyTask

tasks.FACTORIES['toy'] = lambda config, fresh: starts.Run(ToyTask(), config, None)

def get_config():
    config = defaults()
    config.task = 'toy'
    config.optim.warmup_steps = 1
    return config
"""


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp('config') / 'run.py'
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope='module')
def proven(config, tmp_path_factory):
    """The workdir of a proof that found no difference."""
    workdir = tmp_path_factory.mktemp('proof') / 'work'
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = mossjax('train', '--config', config, '--workdir', workdir, '--prove_resume', 6)
    assert code == 0 and 'the same bits, killed after step 3 or not' in said.getvalue()
    return workdir


def test_a_run_that_is_killed_ends_with_the_same_bits(proven):
    state = json.loads((proven / 'whole/state-0.json').read_text())
    assert any("['params']['kernel']" in name for name in state)
    assert any("['extra']['mean']" in name for name in state)
    assert json.loads((proven / 'parts/state-0.json').read_text()) == state
    rows = [json.loads(line) for line in open(proven / 'parts/rows-0.jsonl')]
    assert {row['step'] for row in rows} == set(range(6))
    assert [row['step'] for row in rows].count(3) > 1  # read before the kill and after it


def test_what_differs_is_named(proven, tmp_path):
    shutil.copytree(proven, tmp_path / 'work')
    assert prove.differences(tmp_path / 'work') == []
    rows = tmp_path / 'work/parts/rows-0.jsonl'
    lines = rows.read_text().splitlines()
    at = max(i for i, line in enumerate(lines) if json.loads(line)['step'] == 4)
    lines[at] = re.sub(r'"sha256": "....', '"sha256": "0000', lines[at])
    rows.write_text('\n'.join(lines))
    state = tmp_path / 'work/parts/state-0.json'
    content = json.loads(state.read_text())
    kernel = next(name for name in content if name.startswith("['params']['kernel']"))
    state.write_text(json.dumps(content | {kernel: 'other'}))
    assert prove.differences(tmp_path / 'work') == [
        f'state-0.json: {kernel} differs', 'rows-0.jsonl: step 5 was given other rows'
    ]


@pytest.mark.parametrize('count, said', [(5, 'an even number'), (2, '4 or more')])
def test_counts_that_cannot_be_halved_around_a_kill(config, count, said, tmp_path, capsys):
    args = ('train', '--config', config, '--workdir', tmp_path / 'w')
    assert said in refused(capsys, *args, f'--prove_resume={count}')
    assert not (tmp_path / 'w').exists()


def test_a_workdir_in_use_is_left_alone(config, tmp_path, capsys):
    (tmp_path / 'w').mkdir()
    (tmp_path / 'w' / 'file').touch()
    args = ('train', '--config', config, '--workdir', tmp_path / 'w')
    assert 'wants a fresh one' in refused(capsys, *args, '--prove_resume=6')
