"""Configs: what is unknown is refused by name, and all shipped ones pass."""

import dataclasses
import importlib
import pathlib
import pkgutil
import re

from flax import traverse_util
import ml_collections
import pytest

import experiments.codec_24k
import experiments.moss_9b
from experiments.moss_9b import common, lora, sft, stage1, stage2
import experiments.nano.configs
from mossjax.cli import main as cli
from mossjax.errors import InputError
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.flops import convention
from mossjax.parallel import chips, rules, slices
from mossjax.parallel.mesh import MeshConfig, make_mesh
from mossjax.parallel.rows import Rows
from mossjax.plan import compile as plan
from mossjax.train import lm, optim, tasks
from mossjax.train.config import FREE, RunConfig, changes, check, defaults, is_free, options
from mossjax.train.lm import LMData, LMLoss, LMModel
from mossjax.train.step import check_parts

STAGES = (stage1, stage2, sft, lora)

SHIPPED = sorted(
    f'{package.__name__}.{module.name}'
    for package in (experiments.codec_24k, experiments.moss_9b, experiments.nano.configs)
    for module in pkgutil.iter_modules(package.__path__) if module.name != 'common'
)


@pytest.mark.parametrize('name', SHIPPED)
def test_shipped_configs(name):
    config = importlib.import_module(name).get_config()
    check(config)
    assert config.task in tasks.FACTORIES
    for section, kind in tasks.SECTIONS[config.task].items():
        options(config[section], kind, section)


def test_9b_configs_are_the_papers():
    """Section 5: learning rates, what is frozen, and what that leaves to train."""
    found = {}
    for stage in ('stage1', 'stage2', 'sft'):
        config = importlib.import_module(f'experiments.moss_9b.{stage}').get_config()
        task = lm.make_task(config, None)
        assert task.config == LMConfig.released()
        trainable, _ = optim.split(task.network.shapes, tuple(config.optim.frozen))
        found[stage] = (config.optim.peak_lr, config.optim.weight_decay, optim.count(trainable))
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12288 + 2 * 4096 + 2 * 128
    speech = 2 * 16512 * 4096 + 4 * layer + 4096
    total = speech + 2 * 151680 * 4096 + 36 * layer + 4096
    assert found == {
        'stage1': (4e-4, 0.1, speech), 'stage2': (6e-5, 0.1, total), 'sft': (1e-5, 0.1, total)
    }


@pytest.mark.parametrize('name', common.SLICES)
def test_9b_configs_fit_their_slices(name):
    """On devices as libtpu names them: rows of the paper's length, one at a time for each group of
    chips that share it, every one of them read by the processes that hold it."""
    one, count = slices.several(name, '')
    devices = plan.devices(one.topology, count)
    processes = {device.process_index for device in devices}
    stages = [stage for stage in STAGES if name in stage.ROWS]
    assert stages == ([stage1, stage2] if len(devices) > 16 else [sft, lora])
    for stage in stages:
        config = stage.get_config(name)
        check(config)
        mesh = make_mesh(MeshConfig(**config.mesh), devices)
        held = [Rows.of(mesh, rules.preset(config.rules), p) for p in processes]
        size, context = config.data.batch_size, config.data.context
        check_parts(lm.make_task(config, None), size, held[0].parts, config.accumulate)
        assert size == held[0].parts * config.accumulate
        assert context == (14_336 if len(devices) > 16 else 10_240)
        assert set().union(*(rows.held(size) for rows in held)) == set(range(size))
        told = dict(re.findall(r'^ +(\S+) +(\d+) +\d\.\d\d M', stage.__doc__, re.MULTILINE))
        assert int(told.get(name, 8)) == size


@pytest.mark.parametrize(
    ('stage', 'paper', 'seen'), [(stage1, 2.2e6, 1.8e11), (stage2, 2.8e6, 4e11)]
)
def test_what_9b_configs_say_of_their_batches_and_steps_is_arithmetic(stage, paper, seen):
    line = r'^ +(\S+) +(\d+) +(\S+) M +([+-]) (\d+) % +(\S+) +(\S+) +(\d+) %'
    lines = re.findall(line, stage.__doc__, re.MULTILINE)
    assert {name for name, *_ in lines} == stage.ROWS.keys()
    for name, rows, millions, sign, off, steps, seconds, mfu in lines:
        tokens = int(rows) * 14_336
        assert float(millions) == round(tokens / 1e6, 2)
        assert int(sign + off) == round(100 * (tokens / paper - 1))
        assert int(steps.replace(',', '')) == stage.get_config(name).steps
        assert abs(stage.get_config(name).steps * tokens / seen - 1) < 1e-3
        one, count = slices.several(name, '')
        flops = one.chips * count * chips.CHIPS[one.generation].flops * int(mfu) / 100
        step = tokens * convention(LMConfig.released(), 14_336) / flops
        assert abs(float(seconds) - step) <= 0.06


def test_a_9b_config_of_a_slice_it_is_not_for_is_refused():
    with pytest.raises(InputError, match="'v5p-12' is no slice .* name one of v5p-128, v5e-256"):
        stage1.get_config('v5p-12')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c.optim.__setitem__('peek_lr', 1.0), 'optim.peek_lr.*did you mean peak_lr'),
        (lambda c: c.__setitem__('stepz', 1), 'stepz is not known; did you mean steps'),
        (lambda c: c.mesh.__setitem__('sequence', 2), 'mesh.sequence is not known; known: data'),
        (lambda c: c.__delitem__('keep'), 'lacks keep'),
        (lambda c: c.__setitem__('save_every', 0), 'save_every is 0'),
        (lambda c: c.__setitem__('compute_dtype', 'fp8'), "'fp8'; use 'float32' or 'bfloat16'"),
    ],
)
def test_bad_keys_are_refused(change, message):
    config = defaults().unlock()
    change(config)
    with pytest.raises(InputError, match=message):
        check(config)


def test_wrong_types_are_refused():
    plain = {**defaults(), 'steps': 'many'}
    with pytest.raises(InputError, match="config.steps is 'many'; it must be of type int"):
        check(plain)
    check({**defaults(), 'optim': {**defaults().optim, 'peak_lr': 1}})  # a whole number is a rate


def test_unknown_options_of_a_task_are_refused():
    section = ml_collections.ConfigDict({'config': 'released', 'remap': 'full'})
    with pytest.raises(InputError, match='model.remap is not known; did you mean remat'):
        options(section, lm.LMModel, 'model')
    with pytest.raises(InputError, match='config.data lacks rows, weights, batch_size'):
        options(ml_collections.ConfigDict(), lm.LMData, 'data')


@pytest.mark.parametrize(
    ('flags', 'named'),
    [
        (['--config.optim.peek_lr=1e-3'], 'peek_lr'),
        (['--config.steps=many'], 'steps'),
        (['--config.task=speech'], "'speech'; choose one of lm, tokenizer, flow"),
    ],
)
def test_command_line_refuses_them_with_code_2(tmp_path, capsys, flags, named):
    file = pathlib.Path(experiments.moss_9b.__file__).with_name('sft.py')
    code = cli.main(['train', f'--config={file}', f'--workdir={tmp_path}', *flags])
    error = capsys.readouterr().err
    assert code == 2 and named in error and 'Traceback' not in error


@pytest.mark.parametrize(
    ('task', 'section', 'key', 'value'),
    [
        ('lm', 'data', 'batch_size', 0),
        ('lm', 'data', 'batch_size', 10**30),
        ('lm', 'data', 'weights', {'a': -0.5}),
        ('lm', 'data', 'weights', {'a': float('nan')}),
        ('lm', 'data', 'weights', {'a': True}),
        ('lm', 'data', 'rows', {'a': 3}),
        ('lm', 'loss', 'text_weight', -1.0),
        ('lm', 'loss', 'audio_weight', float('inf')),
        ('lm', 'loss', 'chunk', 0),
        ('lm', 'model', 'remat', 3),
        ('tokenizer', 'loss', 'ctc', float('nan')),
        ('tokenizer', 'loss', 'warmup', -1),
        ('tokenizer', 'loss', 'warmup', 2.5),
        ('tokenizer', 'data', 'seconds', 0.0),
        ('tokenizer', 'data', 'room', -0.1),
        ('tokenizer', 'data', 'weights', {'answer': -6}),
        ('tokenizer', 'data', 'weights', {'answer': 0.5}),
        ('tokenizer', 'model', 'decay', 1.5),
        ('tokenizer', 'model', 'commitment', float('nan')),
        ('tokenizer', 'model', 'd', True),
        ('tokenizer', 'model', 'codes', 10**13),
        ('flow', 'data', 'undisturbed', 1.5),
        ('flow', 'data', 'buckets', 0),
        ('flow', 'loss', 'mu_weight', -2),
        ('flow', 'loss', 'scaled', 1),
        ('flow', 'loss', 'objective', None),
        ('flow', 'model', 'width', -8),
    ],
)
def test_values_of_a_task_are_checked_by_type_and_range(task, section, key, value):
    given = {key: value}
    if section == 'data':  # what has no default
        needed = {'rows': {'a': 'x'}, 'weights': {'a': 1}, 'batch_size': 8} if task == 'lm' else {
            'manifest': 'm', 'seconds': 1
        }
        options(needed, tasks.SECTIONS[task][section], section)
        given = needed | given
    elif (task, section) == ('lm', 'model'):
        given |= {'config': 'x'}
    if value is None:  # counts as absent
        assert getattr(options(given, tasks.SECTIONS[task][section], section), key) == 'flow'
        return
    inside = f'{key}.{next(iter(value))}' if isinstance(value, dict) else key
    with pytest.raises(InputError, match=rf'{inside} is |{inside} is .*; it must be|{key} is -8'):
        options(given, tasks.SECTIONS[task][section], section)


def test_changes_of_a_config():
    before = {'steps': 4, 'optim': {'frozen': ['a'], 'b1': 0.9}, 'gone': None, 'old': 1}
    now = {'steps': 4, 'optim': {'frozen': ('a',), 'b1': 0.8}, 'data': {'rows': {'x': 'y'}}}
    assert changes(before, now) == {
        'data.rows.x': "(not set) -> 'y'", 'old': '1 -> (not set)', 'optim.b1': '0.9 -> 0.8'
    }
    assert changes(before, before) == {}


def test_what_may_change_when_a_run_goes_on():
    """Keys that say how far, how watched and on what, not what the run is."""
    free = set(filter(is_free, traverse_util.flatten_dict(defaults().to_dict(), sep='.')))
    assert {'steps', 'keep', 'mesh.tensor', 'rules', 'init_from'} <= free
    assert not free & {'seed', 'task', 'compute_dtype', 'optim.peak_lr', 'optim.frozen'}
    assert is_free('data.skip_rows.a') and not is_free('data.skip') and not is_free('data.rows.a')
    named = [name.split('.') for name in FREE]
    kinds = {'': RunConfig, 'model': LMModel, 'loss': LMLoss, 'data': LMData}
    for *section, key in named:
        fields = [f.name for f in dataclasses.fields(kinds[''.join(section)])]
        assert key in fields + ['keep']  # of recordings
