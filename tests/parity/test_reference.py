"""Logits of converted directories against their sources, which torch computes."""

import json

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from mossjax.cli import convert as command
from mossjax.cli import main as cli
from mossjax.convert import kinds, reference, transfer
from mossjax.convert.directories import save_lm
from mossjax.convert.qwen3 import qwen_config
from mossjax.convert.transfer import Options, compare_logits, convert
from tests.tiny_lm import tiny_config, tiny_params

CONFIG = tiny_config()
SPEECH = ('audio_vocab_size', 'num_modality_layers', 'num_shared_layers', 'eosp_token_id',
          'modality_pad_token_id', 'sosp_token_id', 'audio_pad_token_id', 'eos_token_id')
CHANGES = {name: getattr(CONFIG, name) for name in SPEECH}


@pytest.fixture
def model(tmp_path):
    save_lm(tmp_path / 'model', CONFIG, tiny_params(CONFIG))
    return tmp_path / 'model'


@pytest.fixture
def qwen(tmp_path):
    torch.manual_seed(0)
    qwen = Qwen3ForCausalLM(Qwen3Config(**qwen_config(CONFIG, 'float32') | {'vocab_size': 70}))
    for name, weight in qwen.named_parameters():
        weight.data.normal_(1.0 if 'norm' in name else 0.0, 0.25)
    qwen.save_pretrained(tmp_path / 'qwen')
    return tmp_path / 'qwen'


def small(comparison, heads):
    assert comparison.errors.keys() == heads and not comparison.faults
    assert max(comparison.errors.values()) < 1e-5


@pytest.mark.parametrize('dtype', ['', 'bfloat16'])
def test_both_forms_of_a_speech_model(tmp_path, model, dtype):
    convert(kinds.open_source(model), tmp_path / 'orbax', Options(dtype=dtype))
    convert(kinds.open_source(tmp_path / 'orbax'), tmp_path / 'back')
    small(compare_logits(tmp_path / 'orbax', model), {'text', 'audio'})
    small(compare_logits(tmp_path / 'back', tmp_path / 'orbax'), {'text', 'audio'})


@pytest.mark.parametrize('dtype', ['', 'bfloat16'])
def test_a_start_from_qwen3(tmp_path, qwen, dtype):
    changes = CHANGES | {'vocab_size': 64, 'seed': 5}
    convert(kinds.open_source(qwen, changes), tmp_path / 'orbax', Options(dtype=dtype))
    heads = {'text', 'audio'} if dtype else {'text'}  # as they are, Transformers opens the files
    small(compare_logits(tmp_path / 'orbax', qwen), heads)


def test_a_text_side(tmp_path, model):
    convert(kinds.text_side(kinds.open_source(model)), tmp_path / 'text')
    assert transfer.verify(tmp_path / 'text', model) == []
    small(compare_logits(tmp_path / 'text', model), {'text'})


def test_a_changed_setting_is_seen_where_hashes_are_blind(tmp_path, model, capsys):
    """RoPE's theta is no tensor."""
    convert(kinds.open_source(model), tmp_path / 'orbax')
    convert(kinds.open_source(tmp_path / 'orbax'), tmp_path / 'back')
    path = tmp_path / 'back' / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'rope_theta': 54321.0}))
    assert transfer.verify(tmp_path / 'back') == []
    for name in command.FLAGS:
        command.FLAGS[name].unparse()
    args = ['--verify', str(tmp_path / 'back'), str(tmp_path / 'orbax')]
    assert cli.main(['convert', *args]) == 1
    assert 'text head: logits differ by' in capsys.readouterr().out


def test_what_does_not_fit_memory_is_not_compared(tmp_path, model, monkeypatch):
    convert(kinds.open_source(model), tmp_path / 'orbax')
    monkeypatch.setattr(reference, 'available_memory', lambda: 10**9)
    found = compare_logits(tmp_path / 'orbax', model)
    assert found.errors == {} and '1.0 are free' in found.skipped
