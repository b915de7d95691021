"""Bad input as a user meets it: one message, exit code 2, nothing half-written.

What each message of a library function says is tested beside that function; here the whole way
through the command line is, for recordings, checkpoints and full disks; for configs and checkpoints
of training runs in `test_train`.
"""

import contextlib
import importlib
import json
import resource
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
import soundfile

from mossjax.cli import main as cli
from mossjax.convert.codec_flow import flow_network, save_flow
from mossjax.infer import audio
from mossjax.infer.talk import Talk
from mossjax.models.flow.config import FlowConfig
from tests.infer.test_audio import REFUSALS
from tests.tiny_chat import write_model

FLOW = FlowConfig(
    vocab_size=64, input_size=16, width=16, heads=2, ff_width=24, blocks=1, up_blocks=1,
    channels=16, head_dim=8, estimator_heads=2, transformers=1, mid_blocks=1,
)  # fmt: skip


def mossjax(command, *args):
    """The command in this process, with flags as new as a process of its own has them."""
    importlib.reload(importlib.import_module(f'mossjax.cli.{command}'))
    return cli.main([command, *map(str, args)])


def refused(capsys, command, *args):
    """Asserts a refusal and returns its message."""
    code = mossjax(command, *args)
    said = capsys.readouterr()
    assert code == 2, said
    assert said.out == '' and 'Traceback' not in said.err
    assert said.err.count(f'mossjax {command}: ') == 1
    return said.err[said.err.index(f'mossjax {command}: ') :]


def listing(folder):
    return {path: path.lstat().st_mtime_ns for path in sorted(folder.rglob('*'))}


@pytest.fixture(scope='module')
def sound(tmp_path_factory, golden):
    """A folder with a language model, a codec and a recording, all in order."""
    root = tmp_path_factory.mktemp('sound')
    write_model(root / 'lm')
    codec = root / 'codec'
    codec.mkdir()
    source = golden('tokenizer')
    shutil.copy(source / 'small_config.json', codec / 'config.json')
    shutil.copy(source / 'preprocessor_config.json', codec)
    shutil.copy(source / 'small_model.safetensors', codec / 'model.safetensors')
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), flow_network(FLOW).shapes)
    save_flow(codec, FLOW, zeros)
    audio.save(root / 'question.wav', np.linspace(-0.5, 0.5, 1600), 16000)
    return root


# --- recordings


@pytest.mark.parametrize('make, message', REFUSALS.values(), ids=REFUSALS.keys())
def test_recordings(make, message, sound, tmp_path, capsys):
    path = tmp_path / 'recording.wav'
    make(path)
    before = listing(tmp_path)
    calls = (
        ('tokenize', '--codec', sound / 'codec', '--out', tmp_path / 'codes.jsonl', path),
        ('chat', '--model', sound / 'lm', '--codec', sound / 'codec', '--reply', 'text',
         '--grid', tmp_path / 'grid.json', '--wav', path),
    )  # fmt: skip
    for call in calls:
        said = refused(capsys, *call)
        assert str(path) in said
        remedies = (message.split()[-1], 'a folder; give the name of a file in it')
        assert any(remedy in said for remedy in remedies)
    assert listing(tmp_path) == before


def test_stereo_at_8_khz_works(sound, tmp_path, golden):
    """The first channel counts; twice the rate makes one code of 640 samples."""
    left = golden('tokenizer/small_speech_cn.npz')['wav0_i16'][: 2 * 6500 : 2]
    soundfile.write(tmp_path / 'stereo.wav', np.stack([left, left[::-1]], axis=1), 8000)
    soundfile.write(tmp_path / 'mono.wav', left, 8000)
    out = tmp_path / 'codes.jsonl'
    paths = [tmp_path / 'stereo.wav', tmp_path / 'mono.wav']
    assert mossjax('tokenize', '--codec', sound / 'codec', '--out', out, *paths) == 0
    stereo, mono = (json.loads(line) for line in out.read_text().splitlines())
    assert stereo['codes'] == mono['codes'] and len(set(stereo['codes'])) > 1
    assert len(stereo['codes']) == -(-6500 // 640) and stereo['seconds'] == 6500 / 8000


# --- checkpoints in the layout of Hugging Face


def _damage(path, how, name):
    """Damages one tensor of a safetensors file; returns what a message must hold."""
    if how == 'truncated':
        path.write_bytes(path.read_bytes()[:-3])
        return str(path), 'ownload'
    tensors = dict(load_file(path))
    if how == 'missing':
        del tensors[name]
    elif how == 'extra':
        name = f'{name}_more'
        tensors[name] = np.zeros(3, np.float32)
    else:
        tensors[name] = np.zeros([n + 1 for n in tensors[name].shape], np.float32)
    save_file(tensors, path)
    label = {'missing': 'missing', 'extra': 'unexpected', 'shape': 'wrong shape'}[how]
    return f'{label}: {name}', 'Check that config and weights belong together'


@pytest.mark.parametrize('how', ['missing', 'extra', 'shape', 'truncated'])
@pytest.mark.parametrize(
    'file, name',
    [
        ('lm/model.safetensors', 'model.text_block.layers.0.mlp.up_proj.weight'),
        ('codec/model.safetensors', 'encoder.layers.1.fc1.bias'),
        ('codec/flow/flow.safetensors', 'encoder.embed.out.0.weight'),
    ],
    ids=['lm', 'tokenizer', 'decoder'],
)
def test_weights(file, name, how, sound, tmp_path, capsys):
    shutil.copytree(sound, tmp_path / 'files')
    root, out = tmp_path / 'files', tmp_path / 'out'
    expected = _damage(root / file, how, name)
    before = listing(tmp_path)
    call = ('chat', '--model', root / 'lm', '--codec', root / 'codec', '--wav',
            root / 'question.wav', '--out', out / 'answer.wav')  # fmt: skip
    # The codes of the model are another number than the codec's, so it is opened by itself.
    if file.startswith('lm'):
        call = ('chat', '--model', root / 'lm', '--text', 'hello', '--reply', 'text',
                '--grid', out / 'grid.json')  # fmt: skip
    said = refused(capsys, *call)
    assert all(part in said for part in expected), said
    if file == 'codec/model.safetensors':
        call = ('--codec', root / 'codec', '--out', out / 'codes.jsonl', root / 'question.wav')
        said = refused(capsys, 'tokenize', *call)
        assert all(part in said for part in expected), said
    assert listing(tmp_path) == before


# --- a full disk


@contextlib.contextmanager
def room_for_files_of(size):
    """A limit on the size of files stands for a full disk: the writer's own calls fail."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_disk_where_an_answer_is_to_be_written(tmp_path, capsys):
    """Found before the model is opened, which is none."""
    out = tmp_path / 'grid.json'
    out.write_text('before')
    with room_for_files_of(20):
        said = refused(
            capsys, 'chat', '--model', tmp_path, '--text', 'hello', '--reply', 'text',
            '--grid', out,
        )  # fmt: skip
    assert f'--grid {out} cannot be written: {tmp_path} takes no files (File too large)' in said
    assert 'free space' in said
    assert out.read_text() == 'before' and list(tmp_path.iterdir()) == [out]


def test_full_disk_while_an_answer_is_written(sound, tmp_path, capsys, monkeypatch):
    """It fills up while the model thinks."""
    think = Talk.reply

    def reply(*args):
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, most))
        return think(*args)

    monkeypatch.setattr(Talk, 'reply', reply)
    out = tmp_path / 'grid.json'
    out.write_text('before')
    with room_for_files_of(2**20):
        code = mossjax(
            'chat', '--model', sound / 'lm', '--text', 'hello', '--reply', 'text', '--grid', out
        )
    answer, said = capsys.readouterr()
    assert code == 2 and answer  # what was said by then stays said
    assert f'{out} cannot be written: File too large' in said and 'free space' in said
    assert out.read_text() == 'before' and list(tmp_path.iterdir()) == [out]


def test_full_disk_while_codes_are_written(sound, tmp_path, capsys):
    out = tmp_path / 'codes.jsonl'
    with room_for_files_of(20):
        said = refused(
            capsys, 'tokenize', '--codec', sound / 'codec', '--out', out, sound / 'question.wav'
        )
    assert f'{out} cannot be written' in said and not list(tmp_path.iterdir())
