"""The language model's configuration: nothing is ignored in silence, nothing is lost."""

import dataclasses
import json
import logging
import math
import types

import jax
import numpy as np
import pytest

from mossjax.errors import InputError
from mossjax.models.lm.cache import Cache
from mossjax.models.lm.config import INERT, LMConfig
from mossjax.models.lm.grid import GridIds
from mossjax.models.lm.model import network
from mossjax.ops.attention import Mask
from tests.tiny_lm import tiny_config, tiny_grid

FIELDS = [f.name for f in dataclasses.fields(LMConfig) if f.name != 'source']
TOKENIZER = types.SimpleNamespace(pad=63, im_end=62, endoftext=63)


def observe(config):
    """Everything a configuration decides, as comparable values."""
    net = network(config)
    shapes = jax.tree.map(lambda x: x.shape, net.shapes)
    positions = np.broadcast_to(np.arange(6), (1, 6))
    grid = tiny_grid(tiny_config(), 1, 6)
    program = jax.jit(lambda p: net.bind(p)(grid, positions, Mask(causal=True)))
    lowered = program.lower(net.shapes).as_text()
    init = str(jax.make_jaxpr(net.init)(jax.random.key(0)))
    try:
        Cache.empty(config, 1, tiny_config().max_position_embeddings, 'float32')
        room = True
    except InputError:
        room = False
    return shapes, lowered, init, room, GridIds.of(config, TOKENIZER)


@pytest.fixture(scope='module')
def baseline():
    return observe(tiny_config())


# What a field becomes; any other (a new one, say) is increased by one.
CHANGES = {
    'rms_norm_eps': 0.02,
    'rope_theta': 54321.0,
    'initializer_range': 0.03,
    'head_dim': 14,
    'num_attention_heads': 8,
    'num_key_value_heads': 3,
    'max_position_embeddings': 95,
    'modality_pad_token_id': 59,
    'sosp_token_id': 58,
    'eos_token_id': 57,
    'dtype': 'float16',
}


@pytest.mark.parametrize('field', FIELDS)
def test_every_field_is_alive(field, baseline):
    """Changed alone it changes a program, is refused, or is listed as inert."""
    value = CHANGES[field] if field in CHANGES else getattr(tiny_config(), field) + 1
    try:
        changed = tiny_config(**{field: value})
    except InputError as error:
        assert field in str(error)
        return
    assert (observe(changed) != baseline) == (field not in INERT)


@pytest.mark.parametrize('stack', ['num_shared_layers', 'num_modality_layers'])
def test_layer_counts_are_alive(stack, baseline):
    """Alone they are refused: they must add up."""
    counts = {name: getattr(tiny_config(), name) + 1 for name in ('num_hidden_layers', stack)}
    assert observe(tiny_config(**counts)) != baseline


def hf_content(**changes):
    """A file as upstream writes it: our fields, honoured keys and keys that do nothing."""
    content = tiny_config().to_hf()
    del content['dtype']
    content |= {
        'torch_dtype': 'float32',
        'transformers_version': '4.57.0.dev0',
        'use_cache': True,
        'auto_map': {'AutoModel': 'modeling_moss_speech.MossSpeechForCausalLM'},
        'layer_types': ['full_attention'] * 5,
        'rms_norm_eps': 0.01,
    }
    return {**content, **changes}


def test_round_trip_keeps_every_key_and_its_order():
    content = hf_content(surprise={'a': [1, None]})
    config = LMConfig.from_hf(content)
    assert config == tiny_config()
    assert json.dumps(config.to_hf()) == json.dumps(content)


def test_integers_for_floats_survive_the_round_trip():
    content = hf_content(rope_theta=12345)
    assert LMConfig.from_hf(content).rope_theta == 12345.0
    assert json.dumps(LMConfig.from_hf(content).to_hf()) == json.dumps(content)


def test_changed_values_are_written_under_the_source_spelling():
    config = dataclasses.replace(LMConfig.from_hf(hf_content()), dtype='bfloat16', rope_theta=7.0)
    assert config.to_hf() == hf_content(torch_dtype='bfloat16', rope_theta=7.0)


def test_both_spellings_of_a_changed_dtype_are_written():
    config = LMConfig.from_hf({**hf_content(), 'dtype': 'float32'})
    changed = dataclasses.replace(config, dtype='float16').to_hf()
    assert (changed['dtype'], changed['torch_dtype']) == ('float16', 'float16')


def test_optional_keys_stay_absent():
    content = hf_content()
    del content['initializer_range']
    assert LMConfig.from_hf(content).initializer_range == 0.02
    assert 'initializer_range' not in LMConfig.from_hf(content).to_hf()


def test_unknown_keys_warn_once_with_their_names(caplog):
    logging.getLogger('absl').propagate = True
    with caplog.at_level(logging.WARNING, logger='absl'):
        LMConfig.from_hf(hf_content(surprise=1, another=2))
    assert [r.levelname for r in caplog.records] == ['WARNING']
    assert "'another', 'surprise'" in caplog.text
    caplog.clear()
    LMConfig.from_hf(hf_content())
    assert not caplog.records


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('model_type', 'qwen3'),
        ('tie_word_embeddings', True),
        ('rope_scaling', {'rope_type': 'yarn', 'factor': 4.0}),
        ('rope_parameters', {'rope_theta': 1e6}),
        ('attention_bias', True),
        ('attention_dropout', 0.1),
        ('use_sliding_window', True),
        ('sliding_window', 4096),
        ('layer_types', ['full_attention'] * 4 + ['sliding_attention']),
        ('hidden_act', 'gelu'),
        ('channels', 8),
        ('num_hidden_layers', 9),
        ('num_key_value_heads', 4),
        ('head_dim', 13),
        ('hidden_size', 0),
        ('hidden_size', '32'),
        ('hidden_size', True),
        ('hidden_size', 32.0),
        ('vocab_size', 10**13),
        ('num_shared_layers', 10**13),
        ('num_hidden_layers', 2**31 - 1),
        ('intermediate_size', 2**31),
        ('rms_norm_eps', math.inf),
        ('rms_norm_eps', math.nan),
        ('rms_norm_eps', 1e18),
        ('rope_theta', math.inf),
        ('rope_theta', 0.5),
        ('initializer_range', -0.02),
        ('initializer_range', '0.02'),
        ('layer_types', 5),
        ('layer_types', 'full_attention'),
        ('layer_types', {'full_attention': 5}),
        ('layer_types', [['full_attention']]),
        ('dtype', 5),
        ('quantization_config', {'quant_method': 'fp8'}),
        ('partial_rotary_factor', 0.5),
        ('modality_pad_token_id', 64),
        ('eosp_token_id', 40),
        ('eos_token_id', [62, 63]),
        ('sosp_token_id', 62),
    ],
)
def test_values_we_cannot_honour_are_refused_by_name(key, value):
    with pytest.raises(InputError, match=key):
        LMConfig.from_hf(hf_content(**{key: value}), where='config.json')


@pytest.mark.parametrize('key', ['rope_theta', 'num_shared_layers', 'modality_pad_token_id'])
def test_missing_keys_are_errors_and_never_defaults(key):
    content = hf_content()
    del content[key]
    with pytest.raises(InputError, match=f"config.json: key '{key}' is missing"):
        LMConfig.from_hf(content)


def test_released_model_has_the_published_size():
    shapes = jax.tree.leaves(network(LMConfig.released()).shapes)
    assert sum(int(np.prod(x.shape)) for x in shapes) == 9_095_694_336
