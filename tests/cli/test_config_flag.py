"""--config.KEY=VALUE for every key that is documented, in a file that sets none of them."""

from collections.abc import Mapping
import dataclasses
import sys
import typing

from absl import flags
import pytest

from mossjax.cli import config_flag
from mossjax.errors import InputError
from mossjax.nn.lora import Lora
from mossjax.parallel.mesh import MeshConfig
from mossjax.train import lm, tasks
from mossjax.train.config import RunConfig, check, options
from mossjax.train.optim import OptimConfig

# By type: what is written on a command line, and what it means.
WRITTEN = {
    int: ('3', 3), float: ('0.25', 0.25), str: ('some/where', 'some/where'), bool: ('true', True),
    tuple: ("('a.*', 'b')", ('a.*', 'b')), Mapping: ("{'key': 'x'}", {'key': 'x'}),
    Mapping[str, str]: ("{'one': 'rows/one'}", {'one': 'rows/one'}),
    Mapping[str, float]: ("{'one': 0.5}", {'one': 0.5}),
    Mapping[str, int]: ("{'one': 4}", {'one': 4}),
    Mapping[str, list]: ("{'speaker': ['slt', 'kal']}", {'speaker': ['slt', 'kal']}),
}


def written(annotation):
    return WRITTEN.get(annotation) or WRITTEN[typing.get_origin(annotation) or annotation]


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """(body of get_config, *arguments) -> the config of a command line."""

    def make(body, *args):
        file = tmp_path / 'mine.py'
        file.write_text(
            'from mossjax.train.config import defaults\n\n\ndef get_config():\n'
            f'    config = defaults()\n    {body}\n    return config\n'
        )
        values = flags.FlagValues()
        holder = config_flag.define(values, 'help')
        monkeypatch.setattr(sys, 'argv', ['mossjax train', f'--config={file}', *args])
        try:
            values(sys.argv)
        except flags.Error as error:
            raise error.__context__ or error from None
        return holder.value

    return make


KEYS = [
    (task, section, field) for task, sections in tasks.SECTIONS.items()
    for section, kind in sections.items() for field in dataclasses.fields(kind)
]


@pytest.mark.parametrize('apart', [False, True])
@pytest.mark.parametrize('task', tasks.SECTIONS)
def test_every_key_of_a_task(task, apart, parse):
    args, wanted = [], {}
    for _, section, field in [key for key in KEYS if key[0] == task]:
        text, value = written(field.type)
        key = f'--config.{section}.{field.name}'
        args += [key, text] if apart else [f'{key}={text}']
        wanted.setdefault(section, {})[field.name] = value
    config = parse(f'config.task = {task!r}', *args)
    for section, keys in wanted.items():
        assert config[section].to_dict() == keys
        for key, value in keys.items():
            assert type(config[section].to_dict()[key]) is type(value)


def test_every_key_of_a_run(parse):
    kinds = {'': RunConfig, 'optim.': OptimConfig, 'mesh.': MeshConfig}
    wanted, args = {}, []
    for where, kind in kinds.items():
        for field in dataclasses.fields(kind):
            if field.type in WRITTEN or typing.get_origin(field.type) is tuple:
                text, wanted[where + field.name] = written(field.type)
                args.append(f'--config.{where}{field.name}={text}')
    for section in ('model', 'data', 'loss'):
        args.remove(f"--config.{section}={{'key': 'x'}}")
        del wanted[section]
    config = parse('pass', *args)
    for key, value in wanted.items():
        node = config
        for name in key.split('.'):
            node = node[name]
        assert node == value and type(node) is type(value)


def test_keys_of_a_group_and_names_of_ones_own(parse):
    """LoRA is off unless a key of it is set; data sets may be added one by one."""
    model = ("config.task = 'lm'; config.model.config = 'm'; config.data.rows = {'a': 'rows/a'}; "
             "config.data.weights = {'a': 1}; config.data.batch_size = 8")  # fmt: skip
    config = parse(model)
    assert options(config.model, lm.LMModel, 'model') == lm.LMModel('m')
    config = parse(
        model, '--config.model.lora.rank=4', '--config.data.rows.b=rows/b',
        '--config.data.weights.b=0.5', '--config.data.weights.a=0.25',
    )
    found = options(config.model, lm.LMModel, 'model')
    assert options(found.lora, Lora, 'model.lora') == Lora(rank=4)
    data = options(config.data, lm.LMData, 'data')
    assert data.rows == {'a': 'rows/a', 'b': 'rows/b'} and data.weights == {'a': 0.25, 'b': 0.5}
    speech = parse(
        "config.task = 'flow'; config.data.only = {'speaker': ['slt']}",
        "--config.data.only.speaker=('kal', 'rms')", '--config.data.only.kind=answer',
        '--config.data.weights.answer=6', '--config.loss.mu_weight=1',
    )
    assert speech.data.only.to_dict() == {'speaker': ('kal', 'rms'), 'kind': ('answer',)}
    assert speech.data.weights.answer == 6 and speech.loss.mu_weight == 1.0
    check(speech)


@pytest.mark.parametrize(
    'key, said',
    [
        ('loss.text_wieght=1', 'config key loss.text_wieght is not known; did you mean text_weigh'),
        ('model.lora.rnk=1', 'config key model.lora.rnk is not known; did you mean rank?'),
        ('data.rows.a.b=1', 'data.rows.a is one value, it has no keys'),
        ('data.rows.a-b=1', 'config key data.rows.a-b is not known'),
        ('model.remat.x=1', 'model.remat is one value'),
        ('dataa.rows=1', 'config key dataa is not known; did you mean data?'),
        ('loss.chunk=many', 'many'),
        ('data.rows=rows/a', 'rows/a'),
    ],
)
def test_keys_that_are_none(key, said, parse):
    with pytest.raises((InputError, flags.Error, ValueError)) as caught:
        parse("config.task = 'lm'; config.data.rows = {'a': 'rows/a'}", f'--config.{key}')
    assert said in str(caught.value)


def test_what_stands_behind_a_colon_is_given_to_the_config(parse, tmp_path):
    """For the file of `experiments/moss_9b`, and for one whose name has a colon itself."""
    file = tmp_path / 'other.py'
    file.write_text(
        'from mossjax.train.config import defaults\n\n\ndef get_config(task="flow"):\n'
        '    config = defaults()\n    config.task = task\n    return config\n'
    )
    odd = tmp_path / 'a.py:lm'
    odd.write_text(file.read_text())
    read = config_flag._Parser().parse
    assert read(f'{file}:tokenizer').task == 'tokenizer'
    assert read(str(file)).task == read(str(odd)).task == 'flow'
    parse('pass')
    with pytest.raises(InputError, match='takes nothing; leave out :lm'):
        read(f'{tmp_path}/mine.py:lm')
