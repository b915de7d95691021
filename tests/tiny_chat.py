"""A tiny chat model on disk, and a stand-in codec that can be computed by hand."""

import json

import jax
import numpy as np
import tokenizers

from mossjax.convert.directories import save_lm
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.model import network

WORDS = ['<unk>', 'be', 'brief', 'speak', 'hello', 'you', 'user', 'assistant', 'system']
CONTROL = ['<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|sosp|>', '<|pad|>']
CONFIG = LMConfig(
    vocab_size=16, audio_vocab_size=14, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
    num_shared_layers=2, num_modality_layers=1, num_attention_heads=2, num_key_value_heads=1,
    head_dim=8, rms_norm_eps=1e-6, rope_theta=1e4, max_position_embeddings=400,
    sosp_token_id=12, modality_pad_token_id=13, eosp_token_id=10, audio_pad_token_id=5,
    eos_token_id=11, initializer_range=0.6, dtype='float32',
)  # fmt: skip


def tokenizer_json(words=WORDS):
    names = [*words, *CONTROL]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(names)}, unk_token='<unk>')
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(CONTROL)
    return tokenizer.to_str().encode()


def write_model(directory, tokenizer=None, config=CONFIG, **settings):
    rng = np.random.default_rng(3)
    params = jax.tree.map(
        lambda x: np.float32(0.6 * rng.normal(size=x.shape)), network(config).shapes
    )
    defaults = {'max_new_tokens': 10, 'min_new_tokens': 4, 'do_sample': False, 'top_k': 0}
    files = {
        'tokenizer.json': tokenizer or tokenizer_json(),
        'generation_config.json': json.dumps({**defaults, **settings}).encode(),
    }
    save_lm(directory, config, params, files=files)
    return params


def encode(wavs):
    """One code per 1280 samples: the first sample of each, in tenths."""
    return [np.rint(10 * wav[::1280]).astype(np.int32) for wav in wavs]


def decode(replies):
    return [np.repeat(np.float32(codes) / 10, 1920) for codes in replies]
