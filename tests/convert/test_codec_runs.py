"""Runs of one network of a codec: what is written of each, what it lacks, what goes along."""

import dataclasses
import pathlib
import pickle
import shutil
import zipfile

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mossjax.checkpoint import Checkpoints
from mossjax.convert import flow_config, hift_config
from mossjax.convert.codec_flow import open_flow
from mossjax.convert.codec_meta import run_meta
from mossjax.convert.codec_parts import TORCH, Part
from mossjax.convert.codec_tokenizer import open_tokenizer
from mossjax.convert.codec_vocoder import open_hift
from mossjax.convert.fingerprint import VOICE
from mossjax.convert.hift_rules import spellings_of
from mossjax.errors import InputError
from mossjax.infer import voice
from mossjax.infer.assets import shipped
from mossjax.models.flow.config import Context
from mossjax.models.tokenizer import quantizer
from mossjax.nn.weight_norm import fold
from mossjax.train.flow import FlowTask
from mossjax.train.tokenizer import TokenizerTask, objectives
from tests import tiny_codec
from tests.cli.test_convert import run
from tests.train.test_tokenizer import TINY

SHIPPED = shipped()


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    """A run's workdir with one step, and the parameters in it."""
    root = tmp_path_factory.mktemp('run')
    rng = np.random.default_rng(0)
    book = quantizer.from_codes(rng.normal(size=(TINY.codes, TINY.d)))
    task = TokenizerTask(TINY, lambda step: {}, objectives(ctc=1.0, phones=3), start=book)
    params = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32), task.network.shapes
    )
    checkpoints = Checkpoints(root / 'checkpoints')
    extra = {'codebook': book, 'step': np.zeros((), np.int32)}
    checkpoints.save(1, {'params': params, 'opt_state': {}, 'extra': extra}, {'model': task.model})
    checkpoints.close()
    return root, params, book


@pytest.fixture
def codec(tmp_path):
    """Another codec, with a decoder whose files are of any kind."""
    folder = tmp_path / 'codec'
    (folder / 'flow').mkdir(parents=True)
    (folder / 'README.md').write_text('of the other codec')
    blob = tmp_path / 'blob'
    blob.write_bytes(b'weights' * 99)
    (folder / 'flow' / 'flow.pt').symlink_to(blob)  # as in the cache of a download
    (folder / 'flow' / 'config.yaml').write_text('flow: {}')
    (folder / 'flow' / 'voices').mkdir()
    (folder / 'flow' / 'voices' / 'one.npz').write_bytes(b'1')
    return folder


def test_a_run_of_the_tokenizer_alone_says_that_it_cannot_speak(workdir, tmp_path, capsys):
    root, params, book = workdir
    assert run(root, tmp_path / 'out') == 0
    said = capsys.readouterr().out
    assert f'{tmp_path / "out"} has no flow/ and can hear, not speak; --companions CODEC' in said
    assert not (tmp_path / 'out' / 'flow').exists()
    config, got = open_tokenizer(tmp_path / 'out')
    assert (config.d, config.codes) == (TINY.d, TINY.codes)
    np.testing.assert_array_equal(got['codebook'], book.codes)
    jax.tree.map(np.testing.assert_array_equal, got['encoder'], params['encoder'])


def test_the_decoder_of_another_codec_goes_along_whole(workdir, codec, tmp_path, capsys):
    assert run('--companions', codec, workdir[0], tmp_path / 'out') == 0
    assert 'can hear, not speak' not in capsys.readouterr().out
    found = {
        str(p.relative_to(tmp_path / 'out')): p.read_bytes()
        for p in (tmp_path / 'out').rglob('*') if p.is_file() and not p.is_symlink()
    }
    assert found['flow/flow.pt'] == b'weights' * 99 and found['flow/voices/one.npz'] == b'1'
    assert found['flow/config.yaml'] == b'flow: {}' and found['README.md'] == b'of the other codec'
    assert open_tokenizer(tmp_path / 'out')[0].d == TINY.d


def test_a_codec_keeps_its_decoder_on_the_way_to_orbax_and_back(tmp_path, capsys):
    codec = tmp_path / 'codec'
    shutil.copytree(SHIPPED / 'codec', codec)
    assert run(codec, tmp_path / 'orbax') == 0 and run(tmp_path / 'orbax', tmp_path / 'back') == 0
    said = capsys.readouterr().out
    assert 'left behind' not in said and 'cannot' not in said and 'not speak' not in said
    want, got = open_flow(codec), open_flow(tmp_path / 'back')
    assert want[0] == got[0]
    jax.tree.map(np.testing.assert_array_equal, want[1], got[1])


WRAPPED = {
    'compiled': lambda n: f'_orig_mod.{n}',
    'data parallel': lambda n: f'module.{n}',
    'layers of FSDP': lambda n: n.replace('.layers.', '._fsdp_wrapped_module.layers.'),
    'part of a codec': lambda n: f'codec.tokenizer.{n}',
    'compiled part of a codec': lambda n: f'codec._orig_mod.{n}',
    'by itself': lambda n: n.removeprefix('encoder.'),
    'Whisper': lambda n: f'model.{n}',
}


@pytest.mark.parametrize('change', WRAPPED.values(), ids=WRAPPED.keys())
def test_wrappers_in_the_names_of_a_codec_are_taken_off(change, tmp_path):
    nano, codec = SHIPPED / 'codec', tmp_path / 'codec'
    codec.mkdir()
    for name in ('config.json', 'preprocessor_config.json'):
        shutil.copy(nano / name, codec / name)
    tensors = load_file(nano / 'model.safetensors')
    save_file({change(n): x for n, x in tensors.items()}, codec / 'model.safetensors')
    want, got = open_tokenizer(nano), open_tokenizer(codec)
    assert want[0] == got[0]
    jax.tree.map(np.testing.assert_array_equal, want[1], got[1])


def test_a_codec_without_a_codebook_shows_what_it_has(tmp_path):
    for name in ('config.json', 'preprocessor_config.json'):
        shutil.copy(SHIPPED / 'codec' / name, tmp_path / name)
    save_file({'encoder.conv1.weight': np.zeros((2, 2))}, tmp_path / 'model.safetensors')
    with pytest.raises(InputError, match=r'no tensor is called .*there are encoder.conv1.weight'):
        open_tokenizer(tmp_path)


# ------------------------------------------------------------------------------ of the decoder


def save_run(root, params, model):
    checkpoints = Checkpoints(root / 'checkpoints')
    checkpoints.save(1, {'params': params, 'opt_state': {}, 'extra': {}}, {'model': model})
    checkpoints.close()
    return root


def drawn(shapes):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)


@pytest.fixture(scope='module')
def whole(golden, tmp_path_factory):
    """A codec with everything, and a voice."""
    root = tiny_codec.write(tmp_path_factory.mktemp('whole') / 'codec', golden)
    voice.save(root / VOICE, voice.nobody(tiny_codec.FLOW))
    return root


@pytest.mark.parametrize('chunk', [None, 5])
def test_a_run_of_the_decoder(chunk, whole, tmp_path, capsys):
    """By itself, and in another codec in the place of its own; a streaming one beside it."""
    # What training alone asks may be another.
    config = dataclasses.replace(tiny_codec.FLOW, dropout=0.0, condition_dropout=0.5)
    task = FlowTask(config, None, context=Context(chunk=chunk))
    params = drawn(task.network.shapes)
    root = save_run(tmp_path / 'run', params, task.model)
    assert run(root, tmp_path / 'alone') == 0
    said = capsys.readouterr().out
    assert 'cannot hear; --companions CODEC' in said
    stem = 'flow-chunk-5' if chunk else 'flow'
    for target, args in (('alone', ()), ('out', ('--companions', whole))):
        assert args == () or run(*args, root, tmp_path / target) == 0
        found, got = open_flow(tmp_path / target, stem)
        jax.tree.map(np.testing.assert_array_equal, got, params)
        assert found == (tiny_codec.FLOW if args else config)
    assert 'cannot hear' not in capsys.readouterr().out
    names = {p.relative_to(whole).as_posix() for p in whole.rglob('*') if p.is_file()}
    replaced = set() if chunk else {'flow/flow.safetensors'}
    found = {
        p.relative_to(tmp_path / 'out').as_posix(): p
        for p in (tmp_path / 'out').rglob('*') if p.is_file()
    }
    assert set(found) == (names - replaced) | {f'flow/{stem}.pt', 'certificate.json'}
    for name in names - replaced:
        assert found[name].read_bytes() == (whole / name).read_bytes(), name
    # From there on it is a codec like any other.
    assert run(tmp_path / 'alone', tmp_path / 'orbax') == 0
    assert f'codec ({stem}), 263 tensors -> Orbax' in capsys.readouterr().out


def test_a_run_of_the_vocoder(whole, golden, tmp_path):
    """Trained beside another network, as against a discriminator; its own kernels are plain."""
    part = Part('flow/hift', TORCH, tiny_codec.HIFT)
    part = dataclasses.replace(part, spelled=spellings_of(tiny_codec.HIFT, fold(
        tiny_codec.hift_params(golden('decoder/hift.npz')))))  # fmt: skip
    params = drawn(part.network.shapes)
    others = {'discriminator': {'kernel': np.zeros((2, 2), np.float32)}}
    model = run_meta(part, inside='generator/')
    root = save_run(tmp_path / 'run', {'generator': params, **others}, model)
    assert run('--companions', whole, root, tmp_path / 'out') == 0
    config, got = open_hift(tmp_path / 'out')
    assert config == tiny_codec.HIFT
    jax.tree.map(np.testing.assert_array_equal, got, params)
    assert (tmp_path / 'out' / VOICE).is_file()


def test_a_run_of_another_decoder_than_the_codec_has(whole, tmp_path, capsys):
    task = FlowTask(dataclasses.replace(tiny_codec.FLOW, guidance=0.5, heads=2), None)
    root = save_run(tmp_path / 'run', drawn(task.network.shapes), task.model)
    assert run('--companions', whole, root, tmp_path / 'out') == 2
    said = capsys.readouterr().err
    assert 'config.yaml: describes another flow than was trained (heads is 4, 2 in the run,' in said
    assert 'guidance is 0.7, 0.5 in the run' in said and not (tmp_path / 'out').exists()


def test_a_vocoder_of_another_mel_than_the_decoder_makes(tmp_path, capsys):
    """Refused where the codec tells, before anything is written; the other way round they join."""
    part = Part('flow/hift', TORCH, tiny_codec.HIFT)
    root = save_run(tmp_path / 'run', drawn(part.network.shapes), run_meta(part))
    other = tmp_path / 'codec' / 'flow' / 'config.yaml'
    other.parent.mkdir(parents=True)
    flow_config.write_config(other, dataclasses.replace(tiny_codec.FLOW, mels=40))
    assert run('--companions', tmp_path / 'codec', root, tmp_path / 'out') == 2
    said = capsys.readouterr().err
    assert 'describes a flow that makes 40 mel bins, the vocoder of the run reads 80; name' in said
    assert not (tmp_path / 'out').exists()
    other.unlink()
    hift_config.write(other, tiny_codec.HIFT)
    task = FlowTask(tiny_codec.FLOW, None)
    decoder = save_run(tmp_path / 'decoder', drawn(task.network.shapes), task.model)
    assert run('--companions', tmp_path / 'codec', decoder, tmp_path / 'out') == 0
    assert open_flow(tmp_path / 'out')[0] == tiny_codec.FLOW
    assert hift_config.described(tmp_path / 'out' / 'flow' / 'config.yaml')


def test_companions_are_files_not_the_other_form(whole, tmp_path, capsys):
    task = FlowTask(tiny_codec.FLOW, None)
    root = save_run(tmp_path / 'run', drawn(task.network.shapes), task.model)
    assert run(root, tmp_path / 'alone') == run(tmp_path / 'alone', tmp_path / 'orbax') == 0
    for given, said in (
        (tmp_path / 'orbax', f'mossjax convert {tmp_path / "orbax"} CODEC makes it'),
        (whole / 'config.json', 'is a file; give the folder that holds it'),
    ):
        assert run('--companions', given, root, tmp_path / 'out') == 2
        assert said in capsys.readouterr().err and not (tmp_path / 'out').exists()


def test_a_new_tokenizer_leaves_the_voice_of_the_old_one_behind(workdir, whole, tmp_path):
    assert run('--companions', whole, workdir[0], tmp_path / 'out') == 0
    assert (tmp_path / 'out' / 'flow' / 'hift.pt').is_file()
    assert not (tmp_path / 'out' / VOICE).exists()


# -------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    'change, said',
    [
        ({'parts': 5}, 'parts in its meta item is 5'),
        ({'parts': {}}, 'parts in its meta item is {}'),
        ({'parts': {'flow/other': {}}}, "parts in its meta item is 'flow/other'"),
        ({'inside': 3}, '"inside" in its meta item is no text'),
        ('suffix', "suffix in its meta item is '.exe'"),
        ('config', 'config in its meta item is {'),
        ('width', "width is '64'"),
        ('heads', 'width 64 must be even and divisible by heads 7'),
    ],
)
def test_meta_items_that_are_damaged(change, said, tmp_path, capsys):
    task = FlowTask(tiny_codec.FLOW, None)
    model = task.model
    part = model['parts']['flow/flow']
    if isinstance(change, dict):
        model |= change
    elif change == 'suffix':
        part['suffix'] = '.exe'
    elif change == 'config':
        del part['config']['width']
    else:
        part['config'][change] = {'width': '64', 'heads': 7}[change]
    root = save_run(tmp_path / 'run', {'x': np.zeros(2, np.float32)}, model)
    assert run(root, tmp_path / 'out') == 2
    assert said in capsys.readouterr().err and not (tmp_path / 'out').exists()


class _Harm:
    """Runs a command where pickles are executed."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return pathlib.Path.touch, (self.marker,)


def test_weights_that_are_torn_or_want_to_run_something(whole, tmp_path, capsys):
    codec, marker = tmp_path / 'codec', tmp_path / 'ran'
    shutil.copytree(whole, codec)
    path = codec / 'flow' / 'hift.pt'
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    assert run(codec, tmp_path / 'out') == 2
    assert 'hift.pt: no zip archive' in capsys.readouterr().err
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('hift/data.pkl', pickle.dumps({'x': _Harm(marker)}))
    assert run(codec, tmp_path / 'out') == 2
    assert 'hift.pt: refused, this reader only takes tensors' in capsys.readouterr().err
    assert not marker.exists() and {p.name for p in tmp_path.iterdir()} == {'codec'}


def test_an_older_form_of_the_weights_is_said_to_stay(whole, tmp_path, capsys):
    codec = tmp_path / 'codec'
    shutil.copytree(whole, codec)
    (codec / 'flow' / 'flow.pt').write_bytes(b'stale')
    assert run(codec, tmp_path / 'out') == 0
    assert 'left behind: flow/flow.pt' in capsys.readouterr().out
