"""A fresh speech model from a Qwen3 text model.

Qwen3's first layers become the trunk, its last num_modality_layers the text branch, so that the
text side computes what Qwen3 computed. The speech side starts as a copy of the text branch and
norm, with a new embedding and head. (What upstream did for the speech side is not published.)
"""

from collections.abc import Mapping
import json
from pathlib import Path
import re

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.convert import rules, safetensors_io
from mossjax.convert.lm_rules import TEXT_RULES
from mossjax.errors import InputError
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.model import network

# Must be equal in both configurations: none of them can be changed after training.
GEOMETRY = (
    'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads',
    'num_key_value_heads', 'head_dim', 'rms_norm_eps', 'rope_theta',
)  # fmt: skip
SUPPORTED = {
    'hidden_act': 'silu',
    'attention_bias': False,
    'rope_scaling': None,
    'use_sliding_window': False,
}


def open_qwen3(directory: str | Path, config: LMConfig, key: jax.Array) -> dict:
    """`from_qwen3` on a Hugging Face directory (config.json and safetensors)."""
    directory = Path(directory)
    path = directory / 'config.json'
    try:
        qwen = json.loads(path.read_text())
    except (OSError, ValueError):
        raise InputError(
            f'{path}: cannot be read as JSON. Give the directory of a Qwen3 download.'
        ) from None
    return from_qwen3(qwen, safetensors_io.open_tensors(directory), config, key)


def from_qwen3(qwen: Mapping, tensors, config: LMConfig, key: jax.Array) -> dict:
    """Parameters for `config` from a Qwen3 checkpoint, in the checkpoint's dtype.

    Args:
      qwen: content of Qwen3's config.json.
      tensors: its weights, with the interface of `safetensors_io.TensorFile`.
      config: the model to make; its vocabulary may be shorter than Qwen3's, never longer.
      key: for the fresh speech embedding and head.

    Raises:
      InputError: the geometries do not fit, or tensors are missing or of the wrong shape.
    """
    check_geometry(qwen, config)
    tied = bool(qwen.get('tie_word_embeddings', False))

    def source(name: str) -> str:
        return _qwen_name(name, config.num_shared_layers, tied)

    shapes = network(config).shapes
    text_shapes = {k: v for k, v in shapes.items() if not k.startswith('audio_')}
    vocabulary = {'model.embed_tokens.weight', 'text_lm_head.weight'}
    expected = rules.expected_tensors(TEXT_RULES, text_shapes)
    found = {}
    for name, shape in expected.items():
        if source(name) in tensors.shapes:
            have = tensors.shapes[source(name)]
            found[name] = (min(have[0], shape[0]), *have[1:]) if name in vocabulary else have
    # Whatever no rule asked for would be lost: report it as unexpected.
    used = {source(name) for name in expected} | ({'lm_head.weight'} if tied else set())
    found.update({n: s for n, s in tensors.shapes.items() if n not in used})
    rules.check(TEXT_RULES, found, text_shapes, where='Qwen3 checkpoint')

    def read(name: str) -> np.ndarray:
        array = tensors.read(source(name))
        return array[: config.vocab_size] if name in vocabulary else array

    return start_speech_side(rules.to_params(TEXT_RULES, read, text_shapes), config, key)


def start_speech_side(params: Mapping, config: LMConfig, key: jax.Array) -> dict:
    """Gives a text model its speech side: copied branch and norm, fresh embedding and head.

    Any speech side already in `params` is replaced; text parameters are passed on as they are.
    The fresh tables are normal(0, initializer_range) in the text embedding's dtype.
    """
    dtype = params['text_embed']['table'].dtype
    embed_key, head_key = jax.random.split(key)

    def fresh(key, shape):
        return (config.initializer_range * jax.random.normal(key, shape)).astype(dtype)

    d, vocab = config.hidden_size, config.audio_vocab_size
    return {
        **params,
        'audio_branch': jax.tree.map(jnp.array, params['text_branch']),
        'audio_norm': jax.tree.map(jnp.array, params['text_norm']),
        'audio_embed': {'table': fresh(embed_key, (vocab, d))},
        'audio_head': {'kernel': fresh(head_key, (d, vocab))},
    }


def check_geometry(qwen: Mapping, config: LMConfig) -> None:
    """Refuses a Qwen3 configuration whose layers could not run inside this model."""
    rope = qwen.get('rope_parameters') or {}  # Transformers 5 keeps theta in here
    qwen = {'rope_theta': rope.get('rope_theta'), **qwen}
    faults = [
        f'{key} is {qwen.get(key)} in Qwen3, {getattr(config, key)} here'
        for key in GEOMETRY
        if qwen.get(key) != getattr(config, key)
    ]
    faults += [
        f'{key} is {qwen[key]!r}, only {only!r} is implemented'
        for key, only in SUPPORTED.items()
        if qwen.get(key, only) != only
    ]
    if rope.get('rope_type', 'default') != 'default':
        faults.append(f'rope_type is {rope["rope_type"]!r}, only default is implemented')
    if (qwen.get('vocab_size') or 0) < config.vocab_size:
        faults.append(
            f'vocab_size is {qwen.get("vocab_size")} in Qwen3, fewer than {config.vocab_size} here'
        )
    if faults:
        raise InputError(
            'this Qwen3 does not fit the model: ' + '; '.join(faults) + '. Use the Qwen3 the '
            "configuration was made for, or copy that model's numbers into the configuration."
        )


def _qwen_name(name: str, shared: int, tied: bool) -> str:
    """Our checkpoint's name of a text-side tensor -> Qwen3's."""
    if name == 'text_lm_head.weight':
        return 'model.embed_tokens.weight' if tied else 'lm_head.weight'
    name = name.replace('model.text_norm.', 'model.norm.')
    name = name.replace('model.shared_block.layers.', 'model.layers.')
    return re.sub(
        r'model\.text_block\.layers\.(\d+)', lambda m: f'model.layers.{shared + int(m[1])}', name
    )
