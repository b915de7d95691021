"""`mossjax plan` as a user meets it: a small model compiled for slices that are not there."""

import json

import pytest

from mossjax.models.lm.flops import convention
from mossjax.parallel.chips import CHIPS
from tests.cli.test_bad_input import mossjax, refused
from tests.tiny_lm import tiny_config

MODEL = tiny_config()
CONFIG = """
from mossjax.train.config import defaults


def get_config():
    config = defaults()
    config.task, config.compute_dtype, config.steps = 'lm', 'bfloat16', 1800
    config.model.config, config.model.remat = {model!r}, 'attention'
    config.data.rows, config.data.weights, config.data.batch_size = {{'x': 'x'}}, {{'x': 1.0}}, 8
    return config
"""


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp('plan')
    (root / 'model').mkdir()
    (root / 'model' / 'config.json').write_text(json.dumps(MODEL.to_hf()))
    (root / 'mine.py').write_text(CONFIG.format(model=str(root / 'model')))
    return root / 'mine.py'


@pytest.mark.tpu_compile
def test_a_step_is_compiled_estimated_and_remembered(config, tmp_path, capsys):
    asked = ('plan', '--config', config, '--slices', 'v5e-4', '--context', 64,
             '--cache', tmp_path / 'cache', '--json', tmp_path / 'plan.json',
             '--picture', tmp_path / 'plan.svg', '--explain')  # fmt: skip
    assert mossjax(*asked) == 0
    said = capsys.readouterr().out
    [row] = json.loads((tmp_path / 'plan.json').read_text())['plans']
    assert row['rows'] * row['parts'] * 4 == 8 and row['mesh'] == {
        'data': 1, 'fsdp': 4, 'tensor': 1
    }  # fmt: skip
    held = row['bytes']
    assert held['optimiser'] >= 2 * held['parameters']  # two moments of each
    assert held['parameters'] + held['optimiser'] < held['peak'] < held['limit']
    tokens = 8 * 64
    assert row['tokens_per_second'] == pytest.approx(tokens / row['seconds'])
    assert row['chip_hours'] == pytest.approx(1800 * row['seconds'] * 4 / 3600)
    work = convention(MODEL, 64) * tokens / 4
    assert row['share_of_peak'] == pytest.approx(work / row['seconds'] / CHIPS['v5e'].flops)
    assert sum(row['seconds_of'].values()) == pytest.approx(row['seconds'])
    assert {x['kind'] for x in row['collectives']} & {'all-gather', 'all-reduce'}
    assert 'v5e-4' in said and 'Nothing was measured on a TPU' in said
    assert sum('mossjax/' in line for line in said.splitlines()) >= 5  # places of dear parts
    assert (tmp_path / 'plan.svg').read_text().startswith('<svg')

    [known] = (tmp_path / 'cache').iterdir()
    content = known.read_text()
    known.write_text(content.replace('"seconds": ', '"seconds": 1000', 1))
    assert mossjax(*asked) == 0  # what is remembered is not compiled again
    again = json.loads((tmp_path / 'plan.json').read_text())['plans'][0]
    assert again['seconds'] > 1000


@pytest.mark.tpu_compile
def test_where_nothing_fits_the_cheapest_change_is_named(config, tmp_path, capsys):
    """8,192 rows of 4,096 positions at once on four chips: by arithmetic far too many."""
    code = mossjax(
        'plan', '--config', config, '--slices', 'v5e-4', '--context', 4096, '--cache',
        tmp_path / 'cache', '--json', tmp_path / 'plan.json', '--config.data.batch_size=8192',
        '--config.model.remat=none',
    )  # fmt: skip
    assert code == 1
    said = capsys.readouterr().out
    content = json.loads((tmp_path / 'plan.json').read_text())
    assert not content['plans'][0]['fits'] and 'not compiled' in content['plans'][0]['refused']
    change = content['change']
    assert change['fits'] and change['bytes']['peak'] < change['bytes']['limit']
    assert change['flags'] in said and 'The change of fewest chip-hours' in said


@pytest.mark.tpu_compile
def test_the_step_that_speaks_is_planned_too(config, tmp_path, capsys):
    code = mossjax(
        'plan', '--speak', '--config', config, '--slices', 'v5e-1', '--context', 64, '--lanes', 2,
        '--cache', tmp_path / 'cache', '--json', tmp_path / 'plan.json', '--explain',
        '--picture', tmp_path / 'plan.svg',
    )  # fmt: skip
    assert code == 0
    said = capsys.readouterr().out
    [row] = json.loads((tmp_path / 'plan.json').read_text())['plans']
    assert (row['held'], row['lanes'], row['rows'], row['shared']) == ('bfloat16', 2, 64, 1)
    held = row['bytes']
    assert held['parameters'] + held['cache'] <= held['peak'] < held['limit'] - held['codec']
    assert row['speech_seconds_per_second'] == pytest.approx(2 / 12.5 / row['seconds'])
    assert sum(row['ms'].values()) == pytest.approx(1e3 * row['seconds'], rel=0.05, abs=0.005)
    assert sum(row['seconds_of'].values()) == pytest.approx(row['seconds'])
    assert row['over_roofline'] > 1
    assert sum('mossjax/' in line for line in said.splitlines()) >= 5  # places of dear parts
    assert (tmp_path / 'plan.svg').read_text().startswith('<svg')


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        ((), 'no --config'),
        (('--speak',), 'no --slices'),
        (('--speak', '--slices', 'v6e-16'), 'it has 4 hosts'),
        (('--speak', '--slices', 'v6e-1', '--rows', 2), '--rows is of a step that trains'),
        (('--speak', '--slices', 'v6e-1', '--held', 'int4'), '--held int4: choose from'),
        (('--speak', '--slices', 'v6e-1', '--context', 10**6), 'the model has 40960 positions'),
        (('--config', 'CONFIG', '--slices', 'v5e-4', '--lanes', 2), '--lanes is of a step that sp'),
        (('--config', 'CONFIG'), 'no --slices'),
        (('--config', 'CONFIG', '--slices', 'v5p-3', '--context', 64), 'v5p-3: no such slice'),
        (('--config', 'CONFIG', '--slices', 'v5e-16', '--context', 64), 'no multiple of the 16'),
        (('--config', 'CONFIG', '--slices', 'v5e-4', '--rows', 'two'), '--rows two: expected'),
        (('--config', 'CONFIG', '--slices', 'v5e-4'), '--context 14336'),
        (('--config', 'CONFIG', '--slices', 'v5e-4', '--context', 64, '--config.mesh.fsdp=3'),
         'is not the number of devices, 4'),
        (('--config', 'CONFIG', '--slices', 'v5e-4', '--context', 64, '--config.task=flow'),
         "config.task is 'flow'"),
    ],
)  # fmt: skip
def test_bad_input_is_named_before_anything_is_compiled(config, capsys, arguments, named):
    arguments = [config if x == 'CONFIG' else x for x in arguments]
    assert named in refused(capsys, 'plan', *arguments)
