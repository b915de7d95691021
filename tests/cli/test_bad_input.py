"""Bad input as a user meets it: one message, exit code 2, nothing half-written.

What each message of a library function says is tested beside that function; here the whole way
through the command line is, for each thing a user can name: recordings, checkpoints, configs.
"""

import contextlib
import importlib
import json
import pathlib
import resource
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
import soundfile

from mossjax.checkpoint import Checkpoints
from mossjax.cli import main as cli
from mossjax.convert.codec_flow import flow_network, save_flow
from mossjax.infer import audio
from mossjax.infer.chat import Chat
from mossjax.models.flow.config import FlowConfig
from mossjax.train import starts, tasks
from tests.infer.test_audio import REFUSALS
from tests.tiny_chat import write_model
from tests.train.toy_task import ToyTask

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted((ROOT / 'experiments/nano/configs').glob('[a-z]*.py'))
CONFIGS = [path for path in CONFIGS if 'def get_config' in path.read_text()]
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
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob('*'))}


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


# --- configs and checkpoints of training runs


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_unknown_key_on_the_command_line(path, tmp_path, capsys):
    workdir = tmp_path / 'run'
    for key in ('typo', 'optim.typo', 'data.typo'):
        said = refused(
            capsys, 'train', '--config', path, '--workdir', workdir, f'--config.{key}=1'
        )
        assert f'--config.{key}' in said and "no key 'typo'" in said and 'look it up' in said
    assert not workdir.exists()


@pytest.mark.parametrize('name', ['sft', 'tokenizer', 'decoder'])
@pytest.mark.parametrize(
    'line, said',
    [
        ('config.stepps = 3', 'config key stepps is not known; did you mean steps?'),
        ('config.optim.peek_lr = 1.0', 'config key optim.peek_lr is not known; did you mean peak_'),
        ('config.data.weigths = {}', 'config key data.weigths is not known; did you mean weights?'),
        ('config.loss.chunkk = 3', 'config key loss.chunkk is not known; '),
        ('config.model.modle = 1', 'config key model.modle is not known; '),
        ('config.optimm.b1 = 0.5', 'Did you mean "optim" instead of "optimm"?'),
        ('config.steps = "many"', "cannot be casted to type <class 'int'>"),
        ('import nothing_of_this_name', "No module named 'nothing_of_this_name'); correct it"),
    ],
)
def test_typo_in_a_config_file(name, line, said, tmp_path, capsys):
    file = tmp_path / 'mine.py'
    file.write_text(
        f'from experiments.nano.configs import {name}\n\n\ndef get_config():\n'
        f'    config = {name}.get_config()\n    {line}\n    return config\n'
    )
    before = listing(tmp_path)
    call = ('train', f'--config={file}', '--workdir', tmp_path / 'run')
    assert said in refused(capsys, *call)
    assert {p for p in listing(tmp_path) if p.suffix != '.pyc' and p.name != '__pycache__'} == set(
        before
    )


def test_a_config_that_is_not_there(tmp_path, capsys):
    for more in ([], ['--config.steps=3']):
        call = ('train', '--config', tmp_path / 'gone.py', '--workdir', tmp_path / 'run', *more)
        assert f'--config {tmp_path / "gone.py"} ' in refused(capsys, *call)
    assert not list(tmp_path.iterdir())


class Heavy(ToyTask):
    """With 16 kB of state that does not compress: more than a full disk takes."""

    def init_extra(self, params):
        return {**super().init_extra(params), 'load': jax.random.normal(jax.random.key(0), (4096,))}

    def loss(self, params, extra, batch, key):
        loss, (metrics, new) = super().loss(params, extra, batch, key)
        return loss, (metrics, {**new, 'load': extra['load']})


@pytest.fixture(scope='module', autouse=True)
def _toy():
    """`mossjax train` knows a task that compiles in a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks.FACTORIES, 'toy', lambda config, fresh: starts.Run(
            Heavy(), config, starts.from_workdir(config.init_from if fresh else '')
        ))
        yield


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp('trained')
    (root / 'mine.py').write_text(
        'from mossjax.train.config import defaults\n\n\ndef get_config():\n'
        '    config = defaults()\n    config.task = "toy"\n    config.optim.warmup_steps = 1\n'
        '    config.steps = config.save_every = 2\n    return config\n'
    )
    assert mossjax('train', '--config', root / 'mine.py', '--workdir', root / 'work') == 0
    return root


@pytest.fixture
def run(trained, tmp_path):
    """(config file, workdir with the checkpoint of step 2): a copy."""
    shutil.copytree(trained, tmp_path / 'run')
    return tmp_path / 'run/mine.py', tmp_path / 'run/work'


def test_checkpoint_of_a_run(run, tmp_path, capsys):
    """Parameters to start from, with a missing, an extra and a mis-shaped array."""
    file, _ = run
    params = {'more': np.zeros(3, np.float32), 'kernel': np.zeros((8, 9), np.float32)}
    checkpoints = Checkpoints(tmp_path / 'other' / 'checkpoints')
    checkpoints.save(3, {'params': params, 'opt_state': {}, 'extra': {}}, {})
    checkpoints.close()
    before = listing(tmp_path / 'other')
    said = refused(
        capsys, 'train', '--config', file, '--workdir', tmp_path / 'new',
        f'--config.init_from={tmp_path / "other"}',
    )  # fmt: skip
    assert str(tmp_path / 'other' / 'checkpoints') in said
    for fault in ('missing bias (8,)', 'unexpected more (3,)', 'kernel has shape (8, 9)', 'config'):
        assert fault in said
    assert listing(tmp_path / 'other') == before


@pytest.mark.parametrize('how', ['gone', 'cut'])
def test_damaged_checkpoint_of_a_run(how, run, tmp_path, capsys):
    """Once the folder that the message names is removed, the run goes on from the one before."""
    file, work = run
    call = ('train', '--config', file, '--workdir', work)
    assert mossjax(*call, '--config.steps=4') == 0
    capsys.readouterr()
    step = work / 'checkpoints' / '4'
    data = [path for path in (step / 'params').glob('**/d/*') if path.is_file()]
    assert data
    for path in data:
        path.unlink() if how == 'gone' else path.write_bytes(path.read_bytes()[:-9])
    said = refused(capsys, *call, '--config.steps=6')
    assert str(work / 'checkpoints') in said and 'remove the folder 4' in said
    assert 'tensorstore_spec' not in said
    shutil.rmtree(step)
    assert mossjax(*call, '--config.steps=6') == 0
    lines = (work / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line)['step'] for line in lines] == [2, 4, 6]


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
    think = Chat.reply

    def reply(*args):
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, most))
        return think(*args)

    monkeypatch.setattr(Chat, 'reply', reply)
    out = tmp_path / 'grid.json'
    out.write_text('before')
    with room_for_files_of(2**20):
        said = refused(
            capsys, 'chat', '--model', sound / 'lm', '--text', 'hello', '--reply', 'text',
            '--grid', out,
        )  # fmt: skip
    assert f'{out} cannot be written: File too large' in said and 'free space' in said
    assert out.read_text() == 'before' and list(tmp_path.iterdir()) == [out]


def test_full_disk_while_codes_are_written(sound, tmp_path, capsys):
    out = tmp_path / 'codes.jsonl'
    with room_for_files_of(20):
        said = refused(
            capsys, 'tokenize', '--codec', sound / 'codec', '--out', out, sound / 'question.wav'
        )
    assert f'{out} cannot be written' in said and not list(tmp_path.iterdir())


def test_full_disk_while_a_checkpoint_is_written(run, capsys):
    """The one before is not touched. That a run goes on from it is tested in tests/train."""
    file, work = run
    call = ('train', '--config', file, '--workdir', work, '--config.steps=4')
    stored = listing(work / 'checkpoints' / '2')
    with room_for_files_of(4000):
        said = refused(capsys, *call)
    assert str(work / 'checkpoints') in said and 'free space' in said
    assert listing(work / 'checkpoints' / '2') == stored
