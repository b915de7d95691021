"""The tokenizer's part of a codec directory: both directions, unused tensors, refusals."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mossjax.convert.codec_tokenizer import open_recogniser, open_tokenizer, save_tokenizer
from mossjax.errors import InputError

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden/tokenizer'


@pytest.fixture
def codec(tmp_path):
    """(directory, its tensors): a writable copy of the recorded codec."""
    shutil.copyfile(GOLDEN / 'small_config.json', tmp_path / 'config.json')
    shutil.copyfile(
        GOLDEN / 'preprocessor_config.json', tmp_path / 'preprocessor_config.json'
    )
    tensors = load_file(GOLDEN / 'small_model.safetensors')
    save_file(tensors, tmp_path / 'model.safetensors')
    return tmp_path, tensors


def test_written_tensors_are_the_ones_read(codec, tmp_path):
    root, tensors = codec
    save_tokenizer(tmp_path / 'again', *open_tokenizer(root))
    written = load_file(tmp_path / 'again/model.safetensors')
    for name, value in written.items():
        if 'embed_positions2' in name:
            # Upstream's sinusoids come from float32 angles of up to 375.
            np.testing.assert_allclose(value, tensors[name], atol=3e-5)
        else:
            np.testing.assert_array_equal(value, tensors[name], err_msg=name)
    left_out = set(tensors) - set(written)
    assert all(
        name.startswith(('encoder.layers.2.', 'encoder.layers.3.', 'encoder.layer_norm.',
                         'encoder.ema_'))
        for name in left_out
    )  # fmt: skip
    config, params = open_tokenizer(tmp_path / 'again')
    jax.tree.map(np.testing.assert_array_equal, params, open_tokenizer(root)[1])
    assert config == open_tokenizer(root)[0]


def test_whisper_style_prefix(codec):
    root, tensors = codec
    params = open_tokenizer(root)[1]
    renamed = {f'model.{name}': value for name, value in tensors.items()}
    renamed['model.decoder.embed_tokens.weight'] = np.zeros((3, 64), np.float32)
    save_file(renamed, root / 'model.safetensors')
    jax.tree.map(np.testing.assert_array_equal, open_tokenizer(root)[1], params)


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (lambda t: t.pop('encoder.layers.1.fc1.bias'), 'missing: encoder.layers.1.fc1.bias'),
        (lambda t: t.update({'encoder.layers.1.self_attn.k_proj.bias': np.zeros(64, np.float32)}),
         'unexpected: encoder.layers.1.self_attn.k_proj.bias'),
        (lambda t: t.update({'encoder.layers.4.fc1.bias': np.zeros(128, np.float32)}),
         'unexpected: encoder.layers.4'),
        (lambda t: t.update({'encoder.codebook.weight': np.zeros((65, 64), np.float32)}),
         'wrong shape: encoder.codebook.weight'),
        (lambda t: t.pop('encoder.codebook.weight'), 'no Whisper-VQ tokenizer'),
    ],
)  # fmt: skip
def test_refuses_tensors_that_do_not_fit(codec, change, said):
    root, tensors = codec
    change(tensors)
    save_file(tensors, root / 'model.safetensors')
    with pytest.raises(InputError, match=said):
        open_tokenizer(root)


def test_refuses_missing_and_broken_files(codec):
    root, _ = codec
    with pytest.raises(InputError, match=r'missing: model\.decoder\.'):
        open_recogniser(root)  # the tokenizer alone has no text decoder
    (root / 'config.json').write_text('{')
    with pytest.raises(InputError, match='config.json: not JSON'):
        open_tokenizer(root)
    (root / 'config.json').unlink()
    with pytest.raises(InputError, match='config.json: no such file'):
        open_tokenizer(root)


def test_configuration_without_json_surprises(codec):
    """What is written is plain JSON that reads back to the same configuration."""
    root, _ = codec
    config, params = open_tokenizer(root)
    save_tokenizer(root, config, params)
    assert json.loads((root / 'config.json').read_text())['quantize_vocab_size'] == 64


def test_an_interrupted_save_is_seen(codec, monkeypatch):
    """New weights beside old settings would pass for a codec."""
    root, _ = codec
    config, params = open_tokenizer(root)

    def killed(path, tensors):
        raise KeyboardInterrupt

    monkeypatch.setattr('mossjax.convert.codec_tokenizer.safetensors_io.write', killed)
    with pytest.raises(KeyboardInterrupt):
        save_tokenizer(root, config, params)
    with pytest.raises(InputError, match='config.json: no such file'):
        open_tokenizer(root)
