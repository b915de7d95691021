"""A codec whose run trained only the tokenizer: what is written, and what it lacks."""

import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mossjax.checkpoint import Checkpoints
from mossjax.convert.codec_flow import open_flow
from mossjax.convert.codec_tokenizer import open_tokenizer
from mossjax.errors import InputError
from mossjax.infer.assets import shipped
from mossjax.models.tokenizer import quantizer
from mossjax.train.tokenizer import TokenizerTask, objectives
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
