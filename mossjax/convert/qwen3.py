"""A fresh speech model from a Qwen3 text model.

Qwen3's first layers become the trunk, its last num_modality_layers the text branch, so that the
text side computes what Qwen3 computed. The speech side starts as a copy of the text branch and
norm, with a new embedding and head. (What upstream did for the speech side is not published.)
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from pathlib import Path
import re

import jax
import jax.numpy as jnp
import numpy as np

from mossjax import values
from mossjax.convert import names, rules
from mossjax.convert.lm_rules import LM_RULES
from mossjax.convert.weight_files import open_tensors
from mossjax.errors import InputError
from mossjax.files import read_json
from mossjax.models.lm import rope_settings
from mossjax.models.lm.config import ABSENT, RANGES, LMConfig, check_layer_types
from mossjax.models.lm.model import network

# Must be equal in both configurations: none of them can be changed after training.
GEOMETRY = (
    'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads',
    'num_key_value_heads', 'head_dim', 'rms_norm_eps', 'rope_theta',
)  # fmt: skip
OPTIONAL = ('max_position_embeddings', 'initializer_range')
VOCABULARY = {'model.embed_tokens.weight', 'text_lm_head.weight'}  # may lose their last rows
FRESH = ('model.audio_embed.weight', 'audio_lm_head.weight')
SUPPORTED = {
    'hidden_act': 'silu',
    'attention_bias': False,
    'use_sliding_window': False,
}


def open_start(directory: str | Path, config: LMConfig, key: jax.Array) -> QwenStart:
    """The start of a speech model in a Qwen3 directory (config.json and safetensors).

    Raises:
      InputError: as of `QwenStart`, or a file is missing or damaged.
    """
    qwen = read_json(Path(directory) / 'config.json')
    return QwenStart(qwen, open_tensors(directory), config, key)


class QwenStart:
    """A Qwen3 checkpoint under the tensor names of the speech model that starts from it.

    Attributes:
      shapes, dtypes: as of `weight_files.Tensors`, all names of the speech model.
      tied: Qwen3 has no head of its own; the text head starts as its embedding.
    """

    def __init__(self, qwen: Mapping, tensors, config: LMConfig, key: jax.Array | int):
        """
        Args:
          qwen: content of Qwen3's config.json.
          tensors: its weights, with the interface of `weight_files.Tensors`.
          config: the model to make; its vocabulary may be shorter than Qwen3's, never longer.
          key: for the fresh speech embedding and head, or a seed.

        Raises:
          InputError: the geometries do not fit, or tensors are missing or of the wrong shape.
        """
        check_geometry(qwen, config)
        self.tied = qwen.get('tie_word_embeddings', False)
        self._config, self._fresh = config, None
        self._key = jax.random.key(key) if isinstance(key, int) else key
        shapes = network(config).shapes
        expected = rules.expected_tensors(LM_RULES, shapes)
        self._source = {
            name: _qwen_name(_text_name(name), config.num_shared_layers, self.tied)
            for name in expected if name not in FRESH
        }  # fmt: skip
        self._tensors = tensors = names.fitted(tensors, self._source.values(), 'Qwen3 checkpoint')
        stored = {n: tuple(s) for n, s in tensors.shapes.items()}
        found = {n: stored[source] for n, source in self._source.items() if source in stored}
        for name in VOCABULARY & set(found):
            found[name] = (min(found[name][0], config.vocab_size), *found[name][1:])
        # Whatever no rule asked for would be lost: report it as unexpected.
        used = {*self._source.values()} | ({'lm_head.weight'} if self.tied else set())
        stray = {n: s for n, s in stored.items() if n not in used}
        fresh = {name: expected[name] for name in FRESH}
        self.shapes = dict(expected)
        self.dtypes = {name: tensors.dtypes[self._source[name]] for name in found}
        self.dtypes |= dict.fromkeys(FRESH, self.dtypes.get('model.embed_tokens.weight'))
        rules.check(
            LM_RULES, {**found, **fresh, **stray}, shapes, where='Qwen3 checkpoint',
            dtypes=self.dtypes,
        )

    def read(self, name: str) -> np.ndarray:
        if name in FRESH:
            if self._fresh is None:  # drawn once: a mesh asks for every shard
                table, head = fresh_tables(self._config, self._key, self.dtypes[name])
                self._fresh = dict(zip(FRESH, map(np.asarray, (table, head.T)), strict=True))
            return self._fresh[name]
        array = self._tensors.read(self._source[name])
        return array[: self._config.vocab_size] if name in VOCABULARY else array


def text_name(name: str, config: LMConfig) -> str | None:
    """Qwen3's name of a tensor of the speech model, None for the speech side."""
    return None if 'audio_' in name else _qwen_name(name, config.num_shared_layers, tied=False)


class TextSide:
    """Trunk and text branch of a speech model under Qwen3's tensor names (untied).

    Attributes:
      shapes, dtypes: as of `weight_files.Tensors`.
    """

    def __init__(self, tensors, config: LMConfig):
        self._tensors = tensors
        names = {text_name(name, config): name for name in tensors.shapes}
        self._source = {theirs: ours for theirs, ours in names.items() if theirs is not None}
        self.shapes = {name: tensors.shapes[ours] for name, ours in self._source.items()}
        self.dtypes = {name: tensors.dtypes[ours] for name, ours in self._source.items()}

    def read(self, name: str) -> np.ndarray:
        return self._tensors.read(self._source[name])


def qwen_config(config: LMConfig, dtype: str) -> dict:
    """config.json of the Qwen3 text model inside a speech model."""
    kept = (*GEOMETRY, 'vocab_size', 'max_position_embeddings', 'initializer_range', 'eos_token_id')
    return {
        'architectures': ['Qwen3ForCausalLM'], 'model_type': 'qwen3', **SUPPORTED,
        'rope_scaling': None, 'tie_word_embeddings': False,
        **{key: getattr(config, key) for key in kept}, 'dtype': dtype,
    }  # fmt: skip


def module_order(name: str) -> tuple:
    """Sort key: embedding, layers by number, norm, head."""
    layer = re.match(r'model\.layers\.(\d+)\.(.*)', name)
    if layer:
        return (1, int(layer[1]), layer[2])
    first = ('model.embed_tokens.weight', '', 'model.norm.weight', 'lm_head.weight')
    return (first.index(name), 0, '')


def speech_config(qwen: Mapping, changes: Mapping | None = None) -> LMConfig:
    """The configuration of a speech model that starts from a Qwen3: its geometry, our speech side.

    Args:
      changes: keys of config.json to set, e.g. {'num_modality_layers': 2, 'sosp_token_id': 60}.
        Everything that is neither Qwen3's nor set here is the released model's.

    Raises:
      InputError: unknown keys, or values that do not go together.
    """
    changes = dict(changes or {})
    names = {field.name for field in dataclasses.fields(LMConfig)} - {'source'}
    fixed = sorted(set(changes) & set(GEOMETRY)) + sorted(set(changes) - names)
    if fixed:
        raise InputError(
            f'{", ".join(fixed)} cannot be changed: they are Qwen3\'s, or no keys of config.json. '
            f'May be changed: {", ".join(sorted(names - set(GEOMETRY)))}'
        )
    qwen = _numbers(qwen)
    released = LMConfig.released()
    modality = changes.get('num_modality_layers', released.num_modality_layers)
    values.number(modality, 'num_modality_layers', RANGES['num_modality_layers'])
    own = {key: qwen[key] for key in (*GEOMETRY, *OPTIONAL) if qwen.get(key) is not None} | {
        'vocab_size': min(released.vocab_size, qwen['vocab_size']),
        'num_modality_layers': modality,
        'num_shared_layers': qwen['num_hidden_layers'] - modality,
    }
    try:
        return dataclasses.replace(released, **own | changes)
    except InputError as error:
        said = str(error).rstrip('.')
        raise InputError(
            f'a speech model cannot start from this Qwen3 as it is: {said}. Set such keys in the '
            'file that --config names'
        ) from error


def start_speech_side(params: Mapping, config: LMConfig, key: jax.Array) -> dict:
    """Gives a text model its speech side: copied branch and norm, fresh embedding and head.

    Any speech side already in `params` is replaced; text parameters are passed on as they are.
    The fresh tables are normal(0, initializer_range) in the text embedding's dtype.
    """
    table, head = fresh_tables(config, key, params['text_embed']['table'].dtype)
    return {
        **params,
        'audio_branch': jax.tree.map(jnp.array, params['text_branch']),
        'audio_norm': jax.tree.map(jnp.array, params['text_norm']),
        'audio_embed': {'table': table},
        'audio_head': {'kernel': head},
    }


def fresh_tables(config: LMConfig, key: jax.Array, dtype) -> tuple[jax.Array, jax.Array]:
    """Speech embedding (va, d) and head (d, va), normal(0, initializer_range)."""
    embed_key, head_key = jax.random.split(key)

    def fresh(key, shape):
        return (config.initializer_range * jax.random.normal(key, shape)).astype(dtype)

    d, vocab = config.hidden_size, config.audio_vocab_size
    return fresh(embed_key, (vocab, d)), fresh(head_key, (d, vocab))


def check_geometry(qwen: Mapping, config: LMConfig) -> None:
    """Refuses a Qwen3 configuration whose layers could not run inside this model."""
    qwen = _numbers(qwen)
    check_layer_types(qwen)
    faults = [
        f'{key} is {qwen[key]} in Qwen3, {getattr(config, key)} here'
        for key in GEOMETRY
        if qwen[key] != getattr(config, key)
    ]
    faults += [
        f'{key} is {values.shown(qwen[key])}, only {only!r} is implemented'
        for key, only in (SUPPORTED | ABSENT).items()
        if qwen.get(key, only) != only
    ]
    if qwen['vocab_size'] < config.vocab_size:
        faults.append(
            f'vocab_size is {qwen["vocab_size"]} in Qwen3, fewer than {config.vocab_size} here'
        )
    if faults:
        raise InputError(
            'this Qwen3 does not fit the model: ' + '; '.join(faults) + '. Use the Qwen3 the '
            "configuration was made for, or copy that model's numbers into the configuration."
        )


def _numbers(qwen: Mapping) -> dict:
    """Qwen3's configuration with its numbers checked and theta at one place.

    Raises:
      InputError: a needed key is missing, or a value is out of range.
    """
    where = 'config.json of Qwen3'
    try:
        qwen = {**qwen, 'rope_theta': rope_settings.theta(qwen)}
    except InputError as error:
        raise InputError(f'{where}: {error}') from None
    if absent := [key for key in (*GEOMETRY, 'vocab_size') if qwen.get(key) is None]:
        raise InputError(f'{where} lacks {", ".join(absent)}; download it again')
    for key in (*GEOMETRY, *OPTIONAL, 'vocab_size'):
        if qwen.get(key) is not None:
            values.number(qwen[key], f'{where}: {key}', RANGES[key])
    if not isinstance(qwen.get('tie_word_embeddings', False), bool):
        raise InputError(f'{where}: tie_word_embeddings is not true or false; download it again')
    return qwen


def _text_name(name: str) -> str:
    """The tensor of the text side that a tensor of the speech side starts as."""
    name = name.replace('model.audio_block.', 'model.text_block.')
    return name.replace('model.audio_norm.', 'model.text_norm.')


def _qwen_name(name: str, shared: int, tied: bool) -> str:
    """Our checkpoint's name of a text-side tensor -> Qwen3's."""
    if name == 'text_lm_head.weight':
        return 'model.embed_tokens.weight' if tied else 'lm_head.weight'
    name = name.replace('model.text_norm.', 'model.norm.')
    name = name.replace('model.shared_block.layers.', 'model.layers.')
    return re.sub(
        r'model\.text_block\.layers\.(\d+)', lambda m: f'model.layers.{shared + int(m[1])}', name
    )
