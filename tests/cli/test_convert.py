"""mossjax convert on a tiny model: both ways, its certificate, its refusals."""

import json

import numpy as np
import pytest

from mossjax.cli import convert as command
from mossjax.cli import main as cli
from mossjax.convert.directories import save_lm
from mossjax.convert.weight_files import open_tensors
from tests.tiny_lm import tiny_config, tiny_params

CONFIG = tiny_config()


@pytest.fixture
def model(tmp_path):
    save_lm(tmp_path / 'model', CONFIG, tiny_params(CONFIG), files={'tokenizer.json': b'{}'})
    return tmp_path / 'model'


def run(*args):
    for name in command.FLAGS:  # a process runs one command; a test runs many
        command.FLAGS[name].unparse()
    return cli.main(['convert', *map(str, args)])


def test_there_and_back(tmp_path, model, capsys):
    assert run(model, tmp_path / 'orbax') == 0
    assert 'moss_speech, 83 tensors -> Orbax' in capsys.readouterr().out
    assert run(tmp_path / 'orbax', tmp_path / 'back') == 0
    assert (tmp_path / 'back' / 'model.safetensors').read_bytes() == (
        model / 'model.safetensors'
    ).read_bytes()
    assert run('--verify', tmp_path / 'orbax', model) == 0
    assert 'every tensor is the one of the certificate' in capsys.readouterr().out


def test_verify_ends_with_1_when_a_tensor_changed(tmp_path, model, capsys):
    assert run(model, tmp_path / 'orbax') == 0
    paper = tmp_path / 'orbax' / 'certificate.json'
    content = json.loads(paper.read_text())
    content['tensors']['text_lm_head.weight']['sha256'] = '0' * 64
    paper.write_text(json.dumps(content))
    assert run('--verify', tmp_path / 'orbax') == 1
    assert 'text_lm_head.weight: sha256' in capsys.readouterr().out


def test_text_side_and_dtype(tmp_path, model):
    assert run('--text_side', '--dtype', 'float16', '--nocertificate', model, tmp_path / 'q') == 0
    got, want = open_tensors(tmp_path / 'q'), open_tensors(model)
    assert got.dtypes['lm_head.weight'] == np.float16
    np.testing.assert_array_equal(
        got.read('model.layers.4.mlp.up_proj.weight'),
        want.read('model.text_block.layers.1.mlp.up_proj.weight').astype(np.float16),
    )
    assert not (tmp_path / 'q' / 'certificate.json').exists()


@pytest.mark.parametrize(
    'args, said',
    [
        (['{tmp}/model'], 'takes two directories'),
        (['{tmp}/nowhere', '{tmp}/out'], 'SRC {tmp}/nowhere: no such folder'),
        (['{tmp}', '{tmp}/out'], 'neither a Hugging Face directory'),
        (['{tmp}/model', '{tmp}/model'], 'already exists and is not empty'),
        (['--verify', '{tmp}/model'], 'only directories that mossjax convert wrote'),
        (['--config', '{tmp}/model/config.json', '{tmp}/model', '{tmp}/out'], 'start from Qwen3'),
        (['--companions', '{tmp}/n', '{tmp}/model', '{tmp}/out'], '--companions {tmp}/n: no such'),
    ],
)
def test_bad_input_ends_with_2(tmp_path, model, capsys, args, said):
    assert run(*[arg.format(tmp=tmp_path) for arg in args]) == 2
    assert said.format(tmp=tmp_path) in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ['model']
