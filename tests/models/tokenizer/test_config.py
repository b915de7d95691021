"""The tokenizer's configuration: both directions, refusals, and that every field is read."""

import dataclasses
import math

import jax
import pytest

from mossjax.convert.codec_tokenizer import tokenizer_network
from mossjax.errors import InputError
from mossjax.models.tokenizer import asr
from mossjax.models.tokenizer import config as config_lib
from mossjax.models.tokenizer.config import TokenizerConfig
from mossjax.nn.param import describe


def test_reads_the_recorded_files(golden):
    config = TokenizerConfig.from_hf(
        golden('tokenizer/small_config.json'), golden('tokenizer/preprocessor_config.json')
    )
    assert (config.d, config.heads, config.ffn, config.layers, config.encoder_layers) == (
        64, 4, 128, 2, 4,
    )
    assert (config.codes, config.positions, config.mels, config.decay) == (64, 1500, 128, 0.99)
    assert config.stride == 1280 and config.piece == 480000


def test_there_and_back():
    config = TokenizerConfig(d=64, heads=4, decoder_heads=2, layers=3, codes=17, seconds=8)
    assert TokenizerConfig.from_hf(*config.to_hf()) == config


def test_written_files_hold_all_keys_of_the_recorded_ones(golden):
    """A reader of upstream's files finds every key and value in ours."""
    recorded = golden('tokenizer/small_config.json'), golden('tokenizer/preprocessor_config.json')
    for theirs, ours in zip(recorded, TokenizerConfig.from_hf(*recorded).to_hf(), strict=True):
        kept = {k: v for k, v in theirs.items() if k not in ('init_std',)}
        assert kept == {k: ours[k] for k in kept if k in ours}


@pytest.mark.parametrize(
    ('where', 'key', 'value', 'said'),
    [
        (0, 'encoder_causal_attention', False, 'encoder_causal_attention'),
        (0, 'encoder_causal_convolution', None, 'encoder_causal_convolution'),
        (0, 'd_model', None, 'd_model'),
        (0, 'd_model', 66, 'encoder_attention_heads'),
        (0, 'quantize_vocab_size', 0, 'quantize_vocab_size'),
        (0, 'pooling_type', 'max', 'pooling_type'),
        (0, 'pooling_position', 1, 'pooling_position'),
        (0, 'quantize_position', 9, 'quantize_position'),
        (0, 'activation_function', 'relu', 'activation_function'),
        (0, 'quantize_with_a_twist', 1, 'quantize_with_a_twist'),
        (0, 'max_source_positions', 1000, 'max_source_positions'),
        (1, 'sampling_rate', 24000, 'sampling_rate'),
        (1, 'feature_size', 80, 'feature_size'),
        (1, 'n_samples', 1, 'n_samples'),
        (1, 'n_samples', '480000', 'n_samples'),
        (1, 'dither', 0.1, 'dither is 0.1'),
        (1, 'chunk_length', 10**13, 'chunk_length'),
        (1, 'chunk_length', 30.0, 'chunk_length'),
        (0, 'd_model', '1280', 'd_model'),
        (0, 'd_model', 10**13, 'd_model'),
        (0, 'decoder_layers', 10**13, 'decoder_layers'),
        (0, 'max_source_positions', 2**31 - 1, 'max_source_positions'),
        (0, 'max_target_positions', 2**30, 'max_target_positions'),
        (0, 'pooling_kernel_size', 4.0, 'pooling_kernel_size'),
        (0, 'quantize_commit_coefficient', math.inf, 'quantize_commit_coefficient'),
        (0, 'quantize_ema_decay', 1.5, 'quantize_ema_decay'),
        (0, 'pad_token_id', -1, 'pad_token_id'),
    ],
)
def test_refuses_other_networks(where, key, value, said):
    files = TokenizerConfig().to_hf()
    if value is None:
        del files[where][key]
    else:
        files[where][key] = value
        if key == 'quantize_position':
            files[0]['pooling_position'], files[0]['encoder_layers'] = value, 4
    with pytest.raises(InputError, match=said):
        TokenizerConfig.from_hf(*files)


def test_unknown_keys_of_other_families_are_ignored():
    config, preprocessor = TokenizerConfig().to_hf()
    config |= {'torch_dtype': 'float32', 'suppress_tokens': [1], 'use_cache': True}
    assert TokenizerConfig.from_hf(config, preprocessor) == TokenizerConfig()


def test_what_only_training_asks_is_said_and_passed_over(caplog):
    config, preprocessor = TokenizerConfig().to_hf()
    config |= {'dropout': 0.1, 'encoder_layerdrop': 0.05}
    assert TokenizerConfig.from_hf(config, preprocessor) == TokenizerConfig()
    assert 'dropout is 0.1' in caplog.text and 'encoder_layerdrop is 0.05' in caplog.text


# Fields that change no shape, and the test that shows each at work.
ELSEWHERE = {
    'commitment', 'loss_scale', 'decay', 'restart_interval',  # train/test_tokenizer.py
    'pool', 'seconds',  # `stride` and `piece`, infer/test_speech_tokenizer.py
    'start_id', 'pad_id',  # below
}
SMALL = TokenizerConfig(
    d=16, heads=2, ffn=32, encoder_layers=3, layers=1, mels=8, positions=100, codes=5, seconds=2,
    decoder_layers=1, decoder_heads=2, decoder_ffn=24, vocab=11, target_positions=6, start_id=1,
    pad_id=0,
)


@pytest.mark.parametrize('field', [f.name for f in dataclasses.fields(TokenizerConfig)])
def test_every_field_is_read(field):
    if field in ELSEWHERE:
        return
    changed = dataclasses.replace(SMALL, **{field: getattr(SMALL, field) * 2})

    def shapes(config):
        training = describe(lambda rngs: asr.Recogniser(config, {'t': asr.TextDecoder}, rngs=rngs))
        both = (tokenizer_network(config).shapes, training.shapes)
        return jax.tree.map(lambda x: x.shape, both)

    assert shapes(changed) != shapes(SMALL)


def test_inert_keys_are_not_fields():
    assert not set(config_lib._INERT) & set(config_lib._KEYS.values())


def test_start_and_padding_ids_reach_the_decoder(rng):
    import numpy as np

    labels = np.array([[3, 4, -100, -100, 2]])
    speech, valid = rng.normal(size=(1, 3, 16)).astype(np.float32), np.ones((1, 3), bool)

    def hidden(**ids):
        config = dataclasses.replace(SMALL, **ids)
        net = describe(lambda rngs: asr.TextDecoder(config, rngs=rngs))
        return np.asarray(
            jax.jit(lambda key: net.bind(net.init(key))(labels, speech, valid))(jax.random.key(0))
        )

    base = hidden()
    assert np.abs(hidden(start_id=5) - base)[0, 0].max() > 1e-3
    other = np.abs(hidden(pad_id=5) - base).max(axis=-1)[0]
    assert other[:3].max() == 0.0 and other[3] > 1e-3
