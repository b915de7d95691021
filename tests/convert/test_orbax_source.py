"""Orbax checkpoints whose arrays, meta item and companions do not go together."""

import json
import os
import shutil

import numpy as np
import pytest

from mossjax.convert import kinds
from mossjax.convert.directories import save_lm
from mossjax.convert.transfer import convert, verify
from mossjax.errors import InputError
from tests.cli.test_convert import run
from tests.tiny_lm import tiny_config, tiny_params

CONFIG = tiny_config()


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
    root = tmp_path_factory.mktemp('converted')
    save_lm(root / 'hf', CONFIG, tiny_params(CONFIG))
    convert(kinds.open_source(root / 'hf'), root / 'orbax')
    return root


@pytest.fixture
def orbax(converted, tmp_path):
    """A copy; what it was made from lies beside it as 'hf'."""
    shutil.copytree(converted, tmp_path, dirs_exist_ok=True)
    return tmp_path / 'orbax'


def edit_meta(orbax, change):
    """`change` edits the 'model' of the meta item, or returns another one."""
    path = next(path for path in (orbax / '0' / 'meta').rglob('*') if path.is_file())
    content = json.loads(path.read_text())
    content['model'] = change(content['model']) or content['model']
    path.write_text(json.dumps(content))


def config(**changes):
    return lambda model: model['configs']['config.json'].update(changes)


def without(key):
    return lambda model: {k: v for k, v in model.items() if k != key}


EDITS = {
    'width': (config(hidden_size=34), 'hidden_size is 34 in config.json, 32 in the weights'),
    'depth': (config(num_shared_layers=2, num_hidden_layers=4),
              'num_shared_layers is 2 in config.json, 3 in the weights'),
    'heads': (config(num_attention_heads=8), r'q_proj.weight is \(72, 32\), expected \(96, 32\)'),
    'words': (config(audio_vocab_size=41), 'audio_vocab_size is 41 in config.json, 40'),
    'absurd': (config(intermediate_size=10**13), 'intermediate_size'),
    'endless': (config(rms_norm_eps=float('inf')), 'Infinity is no number|rms_norm_eps is inf'),
    'no configuration': (without('configs'), 'holds no configuration'),
    'a configuration of text': (lambda model: {**model, 'configs': 'x'}, 'holds no configuration'),
    'another kind': (lambda model: {**model, 'kind': ['x']}, r"holds a \['x'\]"),
    'a tokenizer': (lambda model: {**model, 'kind': 'speech_tokenizer'}, 'holds no configuration'),
    'nothing': (lambda model: 7, 'does not say what it holds'),
    'adapters': (lambda model: {**model, 'lora': {}}, 'its parameters are not those'),
    'choices': (lambda model: {**model, 'choices': 3}, 'holds no configuration'),
}  # fmt: skip


@pytest.mark.parametrize('change, said', EDITS.values(), ids=EDITS.keys())
def test_arrays_that_do_not_fit_their_own_meta_are_refused(change, said, orbax, tmp_path, capsys):
    edit_meta(orbax, change)
    before = sorted(tmp_path.iterdir())
    for call in ((orbax, tmp_path / 'back'), ('--verify', orbax), ('--verify', orbax, orbax)):
        assert run(*call) == 2
        assert 'Traceback' not in capsys.readouterr().err
    with pytest.raises(InputError, match=said):
        kinds.open_source(orbax)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize('content', [b'', b'{"model": ', b'\xff\xfe', b'[]', b'[' * 100_000, b'3'])
def test_a_damaged_meta_item_is_refused(content, orbax):
    path = next(path for path in (orbax / '0' / 'meta').rglob('*') if path.is_file())
    path.write_bytes(content)
    with pytest.raises(InputError, match='meta|does not say'):
        kinds.open_source(orbax)


def test_a_config_beside_the_steps_that_says_something_else_is_refused(orbax):
    path = orbax / 'config.json'
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, 'use_cache': False, 'dtype': 'float16'}))
    kinds.open_source(orbax)  # nothing that counts
    path.write_text(json.dumps({**content, 'rope_theta': 1e4}))
    with pytest.raises(InputError, match=r'rope_theta is 10000.0, but the checkpoint .* 12345.0'):
        kinds.open_source(orbax)


# --- what an interrupted conversion left

ENTRY = {'dtype': 'float32', 'shape': [32], 'sha256': 'x', 'min': 0, 'max': 0, 'mean': 0, 'std': 0,
         'non_finite': 0, 'equal': True}  # fmt: skip


def line(name='model.text_norm.weight', **changes):
    return json.dumps({'tensor': name, **ENTRY, **changes}).encode() + b'\n'


GARBAGE = {
    'bytes': lambda first: os.urandom(64) + b'\n',
    'nothing': lambda first: b'',
    'half a line': lambda first: first[:20],
    'no object': lambda first: b'[1]\n',
    'bytes behind the first line': lambda first: first + b'\xff\xfe\n',
    'no object behind the first line': lambda first: first + b'7\n',
    'no name': lambda first: first + b'{}\n',
    'a name that is none': lambda first: first + line([1]),
    'another tensor': lambda first: first + line('model.of_another'),
    'nothing about a tensor': lambda first: first + b'{"tensor": "model.text_norm.weight"}\n',
    'another shape': lambda first: first + line(shape=[33]),
    'another type': lambda first: first + line(dtype='int8'),
    'not equal': lambda first: first + line(equal=False),
    'nested': lambda first: b'[' * 100_000 + b'\n',
}


@pytest.mark.parametrize('make', GARBAGE.values(), ids=GARBAGE.keys())
def test_a_journal_of_garbage_starts_the_conversion_over(make, orbax, tmp_path, monkeypatch):
    source = kinds.open_source(tmp_path / 'hf')

    class Stopped(BaseException):
        pass

    def stop(*_):
        raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr('mossjax.convert.transfer._run', stop)
        convert(source, tmp_path / 'again')
    partial = tmp_path / '.again.converting'
    journal = partial / 'progress.jsonl'
    journal.write_bytes(make(journal.read_bytes()))
    convert(source, tmp_path / 'again')
    assert verify(tmp_path / 'again', tmp_path / 'hf') == [] and not partial.exists()


@pytest.mark.parametrize('how', ['a folder', 'another checkpoint'])
def test_what_cannot_be_taken_up_starts_the_conversion_over(how, orbax, tmp_path, monkeypatch):
    from mossjax.convert import transfer

    source, partial = kinds.open_source(tmp_path / 'hf'), tmp_path / '.again.converting'
    partial.mkdir()
    (partial / '0').mkdir()
    if how == 'a folder':
        (partial / 'progress.jsonl').mkdir()
    else:
        identity = transfer._identity(source, source.tensors, transfer.Options())
        (partial / 'progress.jsonl').write_bytes(json.dumps(identity).encode() + b'\n' + line())
    convert(source, tmp_path / 'again')
    assert verify(tmp_path / 'again', tmp_path / 'hf') == [] and not partial.exists()


def test_a_file_of_the_name_of_the_work_is_left_alone(orbax, tmp_path, capsys):
    (tmp_path / '.again.converting').write_text('mine')
    assert run(tmp_path / 'hf', tmp_path / 'again') == 2
    assert '.again.converting is in the way' in capsys.readouterr().err
    assert (tmp_path / '.again.converting').read_text() == 'mine'


# --- certificates


@pytest.mark.parametrize('part, value', [
    ('tensors', 3), ('tensors', {'a': 3}), ('made', None), ('made', {'choices': {}}),
    ('source', {}), ('source', {'files': {'x': 1}}), ('made', {'cast': 5, 'choices': {}}),
])
def test_a_damaged_certificate_is_refused(part, value, orbax, capsys):
    paper = json.loads((orbax / 'certificate.json').read_text())
    (orbax / 'certificate.json').write_text(json.dumps({**paper, part: value}))
    assert run('--verify', orbax) == 2
    assert 'certificate.json is damaged' in capsys.readouterr().err
    (orbax / 'certificate.json').write_text('{"tensors": NaN}')
    assert run('--verify', orbax) == 2
    assert 'NaN is no number' in capsys.readouterr().err


def test_statistics_that_no_float_holds_are_left_out():
    """JSON has no infinity; a certificate must be readable."""
    from mossjax.convert.certificate import describe

    found = describe(np.array([1e300, -1e300, 2.0]))
    assert (found['max'], found['mean'], found['std']) == (1e300, 2 / 3, None)
    assert describe(np.full(3, 1.5e308))['mean'] is None
