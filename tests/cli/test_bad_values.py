"""Bad values as a user meets them: exit code 2, one line that names it, nothing left behind."""

import json
import math
import shutil

import numpy as np
import pytest

from mossjax.convert import peft
from mossjax.convert.rules import flatten
from mossjax.models.lm.matrices import matrix
from mossjax.models.lm.model import network
from mossjax.nn.lora import Lora, adapt
from tests.cli.test_bad_input import listing, mossjax, refused, sound  # noqa: F401 (a fixture)
from tests.tiny_chat import CONFIG


@pytest.fixture
def files(sound, tmp_path):  # noqa: F811
    """A copy of a language model, a codec and a recording."""
    shutil.copytree(sound, tmp_path / 'files')
    return tmp_path / 'files'


def edit(path, **changes):
    """Sets keys of a JSON file; Python writes NaN and Infinity as they come."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


CHATS = {
    'layers that are no list': ('config.json', {'layer_types': 5}, 'layer_types'),
    'an endless epsilon': ('config.json', {'rms_norm_eps': math.inf}, 'Infinity is no number'),
    'an epsilon that is none': ('config.json', {'rms_norm_eps': math.nan}, 'NaN is no number'),
    'an epsilon beyond all': ('config.json', {'rms_norm_eps': 10**13}, 'rms_norm_eps'),
    'an absurd width': ('config.json', {'hidden_size': 10**13}, "'hidden_size' is 10000000000000"),
    'an absurd depth': ('config.json', {'num_shared_layers': 10**13}, 'num_shared_layers'),
    'a width of 24 digits': ('config.json', {'intermediate_size': 10**23}, 'intermediate_size'),
    'a width of many digits': ('config.json', {'intermediate_size': 10**60}, '61 digits'),
    'a width that only just counts': ('config.json', {'intermediate_size': 2**31 - 1},
                                      'intermediate_size is 2147483647 in config.json, 24 in'),
    'two rotations': ('config.json', {'rope_parameters': {'rope_theta': 5e5}}, 'rope_theta is 1'),
    'a long rotation': ('config.json', {'rope_scaling': {'rope_type': 'yarn'}}, 'yarn'),
    'an endless temperature': ('generation_config.json', {'temperature': math.inf}, 'Infinity'),
    'no temperature': ('generation_config.json', {'temperature': 1e-30}, 'temperature is 1e-30'),
    'a choice in words': ('generation_config.json', {'do_sample': 'no'}, "do_sample is 'no'"),
    'a share above one': ('generation_config.json', {'top_p': 2}, 'top_p is 2'),
    'a limit of digits': ('generation_config.json', {'max_new_tokens': 10**24}, 'max_new_tokens'),
}  # fmt: skip


@pytest.mark.parametrize('name, changes, said', CHATS.values(), ids=CHATS.keys())
def test_values_in_the_files_of_a_model(name, changes, said, files, capsys):
    edit(files / 'lm' / name, **changes)
    before = listing(files)
    message = refused(
        capsys, 'chat', '--model', files / 'lm', '--text', 'hello', '--reply', 'text',
        '--grid', files / 'grid.json',
    )  # fmt: skip
    assert said in message and name in message and message.count('\n') == 1
    assert listing(files) == before


BOMB = 'a: &a [1, 1]\n' + ''.join(f'{b}: &{b} [*{a}, *{a}, *{a}]\n' for a, b in zip(
    'abcdefghijklmnop', 'bcdefghijklmnopq', strict=True))  # fmt: skip
FLOWS = {
    'contains itself': ('&a {flow: *a}', 'contains itself'),
    'grows': (BOMB, 'more than 100000 entries'),
    'names code': ('flow: !!python/object/apply:os.system [touch here]', 'names Python code'),
    'no number': ('flow: {input_size: .nan}', 'input_size is nan'),
    'absurd': ('num_blocks: 1', 'num_blocks: 10000000000000', 'blocks is 10000000000000'),
    'endless': ('inference_cfg_rate: 0.7', 'inference_cfg_rate: .inf', 'inference_cfg_rate is inf'),
}


@pytest.mark.parametrize('case', FLOWS.values(), ids=FLOWS.keys())
def test_values_in_the_file_of_a_decoder(case, files, capsys):
    *change, said = case
    path = files / 'codec' / 'flow' / 'config.yaml'
    text = path.read_text()
    path.write_text(text.replace(*change) if len(change) == 2 else change[0])
    assert path.read_text() != text
    before = listing(files)
    message = refused(
        capsys, 'chat', '--model', files / 'lm', '--codec', files / 'codec', '--wav',
        files / 'question.wav', '--out', files / 'answer.wav',
    )  # fmt: skip
    assert said in message and 'config.yaml' in message and message.count('\n') == 1
    assert listing(files) == before


def test_a_folder_in_place_of_a_file(files, capsys):
    path = files / 'codec' / 'flow' / 'config.yaml'
    path.unlink()
    path.mkdir()
    message = refused(
        capsys, 'chat', '--model', files / 'lm', '--codec', files / 'codec', '--wav',
        files / 'question.wav', '--out', files / 'answer.wav',
    )  # fmt: skip
    assert 'config.yaml is a folder where a file is due' in message


@pytest.mark.parametrize(
    'command, flag, value',
    [
        ('chat', 'seed', '9' * 24), ('chat', 'seed', '-1'), ('chat', 'seed', '0.5'),
        ('chat', 'seed', 'nan'), ('chat', 'max_new_tokens', '0'), ('chat', 'max_new_tokens', '-5'),
        ('chat', 'max_new_tokens', '9' * 24), ('chat', 'max_new_tokens', '1e3'),
        ('convert', 'shard_gb', 'nan'), ('convert', 'shard_gb', 'inf'),
        ('convert', 'shard_gb', '0'), ('convert', 'shard_gb', 'five'),
        ('demo', 'questions', '0'), ('demo', 'questions', '9' * 24),
    ],
)
def test_numbers_on_the_command_line(command, flag, value, files, capsys):
    before = listing(files)
    more = {
        'chat': ('--model', files / 'lm', '--text', 'hello', '--reply', 'text'),
        'convert': (files / 'lm', files / 'out'), 'demo': ('--out', files / 'demo'),
    }[command]
    said = refused(capsys, command, f'--{flag}={value}', *more)
    assert f'flag --{flag}={value}: expected a' in said
    assert listing(files) == before


@pytest.mark.parametrize('changes, said', [
    ({'init_lora_weights': 'pissa'}, "init_lora_weights is 'pissa'"),
    ({'use_dora': True}, 'use_dora is True'),
    ({'alora_invocation_tokens': [1]}, 'run it with PEFT'), ({'r': 10**13}, 'r is 10000000000000'),
])
def test_adapters_that_mean_something_else(changes, said, files, capsys):
    lora = Lora(2, 4.0, ('trunk/attn/q',))
    shapes = adapt(network(CONFIG), lora, matrix).shapes['lora']
    flat = {path: np.ones(x.shape, np.float32) for path, x in flatten(shapes).items()}
    peft.save(files / 'adapter', peft.Adapters(lora, flat))
    edit(files / 'adapter' / peft.CONFIG, **changes)
    message = refused(
        capsys, 'chat', '--model', files / 'lm', '--text', 'hello', '--reply', 'text',
        '--adapter', files / 'adapter',
    )  # fmt: skip
    assert said in message and 'adapter_config.json' in message and message.count('\n') == 1


def test_numbers_that_are_taken(files, capsys):
    call = ('chat', '--model', files / 'lm', '--text', 'hello', '--reply', 'text')
    assert mossjax(*call, '--seed', 2**32 - 1, '--max_new_tokens', 5) == 0
    assert mossjax('convert', '--shard_gb', '0.001', files / 'lm', files / 'out') == 0
    capsys.readouterr()


@pytest.mark.parametrize('value, said', [
    ('{"num_modality_layers": NaN}', 'NaN is no number'),
    ('{"num_modality_layers": 1, "num_modality_layers": 2}', 'is given twice'),
    ('{"num_modality_layers": 1000000000000000000000000}', 'num_modality_layers is 10'),
    ('{"seed": -1}', 'seed is -1'), ('[]', 'not a JSON object'), 
    ('{"num_modality_layers": 1, "sosp_token_id": 1.5}', 'sosp_token_id is 1.5'),
])
def test_values_in_the_changes_of_a_start(value, said, files, capsys):
    qwen, lm = files / 'qwen', files / 'lm'
    qwen.mkdir()
    content = json.loads((lm / 'config.json').read_text())
    (qwen / 'config.json').write_text(json.dumps({**content, 'model_type': 'qwen3'}))
    (qwen / 'model.safetensors').write_bytes((lm / 'model.safetensors').read_bytes())
    (files / 'changes.json').write_text(value)
    message = refused(
        capsys, 'convert', '--config', files / 'changes.json', qwen, files / 'out'
    )
    assert said in message and not (files / 'out').exists()
