"""The language model's directory: 446 names, byte-equal round trips, refusals."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest

from mossjax.convert import rules
from mossjax.convert.directories import new_directory, save_lm
from mossjax.convert.lm_rules import LM_RULES, module_order
from mossjax.convert.placement import on_host, open_lm
from mossjax.convert.qwen3 import QwenStart, start_speech_side
from mossjax.convert.safetensors_io import SHARD_BYTES, group, write
from mossjax.convert.weight_files import open_tensors
from mossjax.errors import InputError
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.model import network
from tests.tiny_lm import start_params, tiny_config, tiny_params

CONFIG = tiny_config()


def published_tensors():
    return rules.expected_tensors(LM_RULES, network(LMConfig.released()).shapes)


def test_released_manifest():
    """The 446 names and shapes of the published checkpoint, written out independently."""
    want = {
        'model.embed_tokens.weight': (151680, 4096),
        'model.audio_embed.weight': (16512, 4096),
        'model.text_norm.weight': (4096,),
        'model.audio_norm.weight': (4096,),
        'text_lm_head.weight': (151680, 4096),
        'audio_lm_head.weight': (16512, 4096),
    }
    for block, layers in (('shared', 32), ('text', 4), ('audio', 4)):
        for i in range(layers):
            prefix = f'model.{block}_block.layers.{i}.'
            want |= {
                f'{prefix}input_layernorm.weight': (4096,),
                f'{prefix}self_attn.q_proj.weight': (4096, 4096),
                f'{prefix}self_attn.k_proj.weight': (1024, 4096),
                f'{prefix}self_attn.v_proj.weight': (1024, 4096),
                f'{prefix}self_attn.o_proj.weight': (4096, 4096),
                f'{prefix}self_attn.q_norm.weight': (128,),
                f'{prefix}self_attn.k_norm.weight': (128,),
                f'{prefix}post_attention_layernorm.weight': (4096,),
                f'{prefix}mlp.gate_proj.weight': (12288, 4096),
                f'{prefix}mlp.up_proj.weight': (12288, 4096),
                f'{prefix}mlp.down_proj.weight': (4096, 12288),
            }
    assert len(want) == 446
    assert published_tensors() == want


def test_shards_of_the_released_model_have_the_listed_sizes():
    """4.6, 4.7, 4.7 and 3.1 GiB; the order of modules decides where the cuts fall."""
    tensors = published_tensors()
    sizes = {n: 2 * int(np.prod(tensors[n])) for n in sorted(tensors, key=module_order)}
    groups = group(sizes, SHARD_BYTES)
    gib = [round(sum(sizes[n] for n in group) / 2**30, 3) for group in groups]
    assert gib == [4.596, 4.641, 4.656, 3.049]
    assert sum(sizes.values()) == 18_191_388_672


@pytest.mark.parametrize('shard_bytes', [SHARD_BYTES, 20_000])
def test_round_trip_is_byte_equal(tmp_path, rng, shard_bytes):
    """Random bit patterns (NaNs and denormals too) through our parameters and back."""
    shapes = rules.expected_tensors(LM_RULES, network(CONFIG).shapes)
    tensors = {
        name: rng.integers(0, 2**16, shape, dtype=np.uint16).view(ml_dtypes.bfloat16)
        for name, shape in shapes.items()
    }
    (tmp_path / 'source').mkdir()
    write(tmp_path / 'source' / 'model.safetensors', tensors)
    content = {**CONFIG.to_hf(), 'dtype': 'bfloat16'}
    (tmp_path / 'source' / 'config.json').write_text(json.dumps(content))
    config, params = open_lm(tmp_path / 'source')
    save_lm(
        tmp_path / 'copy', config, params, files={'tokenizer.json': b'{}'}, shard_bytes=shard_bytes
    )
    copy = open_tensors(tmp_path / 'copy')
    assert set(copy.shapes) == set(tensors)
    for name, tensor in tensors.items():
        assert copy.read(name).dtype == tensor.dtype and copy.shapes[name] == tensor.shape
        assert copy.read(name).tobytes() == tensor.tobytes(), name
    assert json.loads((tmp_path / 'copy' / 'config.json').read_text()) == content
    assert (tmp_path / 'copy' / 'tokenizer.json').read_bytes() == b'{}'
    assert {p.name for p in tmp_path.iterdir()} == {'source', 'copy'}


def test_heads_are_split_as_the_layer_splits_them():
    """Row 12 * i + j of q_proj is component j of head i; column likewise for o_proj."""
    params = tiny_params(CONFIG)
    tensors = rules.to_tensors(LM_RULES, params)
    q = tensors['model.text_block.layers.1.self_attn.q_proj.weight']
    o = tensors['model.audio_block.layers.0.self_attn.o_proj.weight']
    np.testing.assert_array_equal(q[12 * 4 + 7], params['text_branch']['attn']['q'][1, :, 4, 7])
    np.testing.assert_array_equal(o[:, 12 * 4 + 7], params['audio_branch']['attn']['o'][0, 4, 7])


def test_dtype_converts_on_opening(tmp_path):
    params = tiny_params(CONFIG)
    save_lm(tmp_path / 'a', CONFIG, params)
    config, half = open_lm(tmp_path / 'a', on_host(ml_dtypes.bfloat16))
    assert config == CONFIG
    np.testing.assert_array_equal(
        half['trunk']['mlp']['up'], params['trunk']['mlp']['up'].astype(ml_dtypes.bfloat16)
    )
    save_lm(tmp_path / 'b', config, half)
    assert json.loads((tmp_path / 'b' / 'config.json').read_text())['dtype'] == 'bfloat16'


def test_existing_directories_are_left_alone(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'precious').write_text('x')
    with pytest.raises(InputError, match='already exists'):
        save_lm(tmp_path / 'a', CONFIG, tiny_params(CONFIG))
    assert [p.name for p in (tmp_path / 'a').iterdir()] == ['precious']


def test_nothing_half_written_stays(tmp_path):
    with pytest.raises(FileNotFoundError):
        files = {'tokenizer.json': tmp_path / 'is not there'}
        save_lm(tmp_path / 'a', CONFIG, tiny_params(CONFIG), files=files)
    with pytest.raises(RuntimeError), new_directory(tmp_path / 'b') as temporary:
        (temporary / 'x').write_text('half')
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_parameters_of_another_configuration_are_refused(tmp_path):
    with pytest.raises(InputError, match='text_embed/table has shape .64, 32., .* wants .65, 32.'):
        save_lm(tmp_path / 'a', tiny_config(vocab_size=65), tiny_params(CONFIG))
    params = tiny_params(CONFIG)
    del params['audio_norm']
    with pytest.raises(InputError, match='missing audio_norm/scale'):
        save_lm(tmp_path / 'a', CONFIG, params)


def test_weights_and_config_must_fit(tmp_path):
    save_lm(tmp_path / 'a', CONFIG, tiny_params(CONFIG))
    content = {**CONFIG.to_hf(), 'num_shared_layers': 4, 'num_hidden_layers': 6}
    (tmp_path / 'a' / 'config.json').write_text(json.dumps(content))
    with pytest.raises(InputError, match='missing: model.shared_block.layers.3.input_layernorm'):
        open_lm(tmp_path / 'a')
    (tmp_path / 'a' / 'config.json').write_text('{"vocab_size": ')
    with pytest.raises(InputError, match='config.json: not JSON'):
        open_lm(tmp_path / 'a')
    (tmp_path / 'a' / 'config.json').unlink()
    with pytest.raises(InputError, match='neither a Hugging Face directory .config.json'):
        open_lm(tmp_path / 'a')


# --- starting from Qwen3


class Tensors(dict):
    """A checkpoint in memory."""

    @property
    def shapes(self):
        return {name: array.shape for name, array in self.items()}

    @property
    def dtypes(self):
        return {name: array.dtype for name, array in self.items()}

    def read(self, name):
        return self[name]


def qwen3(vocab=70):
    """(config.json, tensors) of a Qwen3 that fits CONFIG."""
    text = rules.to_tensors(LM_RULES, tiny_params(tiny_config(vocab_size=vocab)))
    renamed = Tensors()
    for name, array in text.items():
        if 'audio' in name:
            continue
        if '.text_block.layers.' in name:
            i = int(name.split('.')[3])
            name = name.replace(f'text_block.layers.{i}.', f'layers.{i + 3}.')
        name = name.replace('shared_block.', '').replace('text_lm_head', 'lm_head')
        renamed[name.replace('text_norm', 'norm')] = array
    content = {k: v for k, v in CONFIG.to_hf().items() if 'num_' in k or k in (
        'hidden_size', 'intermediate_size', 'head_dim', 'rms_norm_eps', 'rope_theta')}
    return {**content, 'vocab_size': vocab, 'tie_word_embeddings': False}, renamed


def test_qwen3_layers_vocabulary_and_speech_side():
    content, tensors = qwen3()
    params = start_params(QwenStart(content, tensors, CONFIG, jax.random.key(3)), CONFIG)
    np.testing.assert_array_equal(
        params['text_embed']['table'], tensors['model.embed_tokens.weight'][:64]
    )
    np.testing.assert_array_equal(params['text_head']['kernel'], tensors['lm_head.weight'][:64].T)
    up = tensors['model.layers.4.mlp.up_proj.weight'].T
    for branch in ('text_branch', 'audio_branch'):
        np.testing.assert_array_equal(params[branch]['mlp']['up'][1], up)
    np.testing.assert_array_equal(
        params['trunk']['mlp']['up'][2], tensors['model.layers.2.mlp.up_proj.weight'].T
    )
    np.testing.assert_array_equal(params['audio_norm']['scale'], tensors['model.norm.weight'])
    for fresh in (params['audio_embed']['table'], params['audio_head']['kernel']):
        assert abs(float(np.std(fresh)) - 0.02) < 0.002 and abs(float(np.mean(fresh))) < 0.002
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, tiny_params(CONFIG))


def test_speech_side_is_a_function_of_the_key_and_owns_its_buffers():
    params = jax.tree.map(jax.numpy.asarray, tiny_params(CONFIG))
    a, b, c = (start_speech_side(params, CONFIG, jax.random.key(n)) for n in (0, 0, 1))
    np.testing.assert_array_equal(a['audio_head']['kernel'], b['audio_head']['kernel'])
    assert np.abs(a['audio_head']['kernel'] - c['audio_head']['kernel']).max() > 0.01
    text, audio = a['text_branch']['attn']['q'], a['audio_branch']['attn']['q']
    np.testing.assert_array_equal(text, audio)
    assert text.unsafe_buffer_pointer() != audio.unsafe_buffer_pointer()


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('hidden_size', 64), ('num_hidden_layers', 6), ('num_key_value_heads', 3),
        ('rope_theta', 1e4), ('rms_norm_eps', 1e-5), ('vocab_size', 63), ('attention_bias', True),
        ('rope_scaling', {'type': 'yarn'}), ('use_sliding_window', True), ('head_dim', None),
    ],
)  # fmt: skip
def test_a_qwen3_of_other_geometry_is_refused(key, value):
    content, tensors = qwen3()
    with pytest.raises(InputError, match=key):
        QwenStart({**content, key: value}, tensors, CONFIG, jax.random.key(0))


def test_qwen3_tensors_must_be_complete_and_known():
    content, tensors = qwen3()
    tensors['model.layers.0.self_attn.q_proj.bias'] = np.zeros(72)
    del tensors['model.norm.weight']
    with pytest.raises(InputError) as error:
        QwenStart(content, tensors, CONFIG, jax.random.key(0))
    assert 'unexpected: model.layers.0.self_attn.q_proj.bias' in str(error.value)
    assert 'missing: model.text_norm.weight' in str(error.value)
