"""`flow/config.yaml`, the file of a flow decoder's facts.

The released file is a program in disguise: YAML whose tags name Python classes to build. Here a
tag is read as the plain mapping below it and nothing is ever executed; `!ref <name>` (alone or in
a product) is looked up. Only the `flow` entry matters, and of it only the keys in `_KEYS`.
"""

import ast
from collections.abc import Mapping
import dataclasses
import operator
from pathlib import Path
import re
from typing import Any

from absl import logging
import yaml

from mossjax import paths, values
from mossjax.convert.yaml_reader import read_yaml
from mossjax.errors import InputError
from mossjax.files import replacing
from mossjax.models.flow.config import FlowConfig

MAX_REFERENCE = 200  # letters
# Where a field stands under `flow:` in the file. A field can stand in two places that must agree.
_KEYS = {
    'vocab_size': 'vocab_size',
    'input_size': 'input_size',
    'mels': 'output_size',
    'xvector_size': 'spk_embed_dim',
    'ratio': 'token_mel_ratio',
    'lookahead': 'pre_lookahead_len',
    'width': 'encoder.output_size',
    'heads': 'encoder.attention_heads',
    'ff_width': 'encoder.linear_units',
    'blocks': 'encoder.num_blocks',
    'up_blocks': 'encoder.num_up_blocks',
    'dropout': 'encoder.dropout_rate',
    'chunk': 'encoder.static_chunk_size',
    'channels': 'decoder.estimator.channels',
    'head_dim': 'decoder.estimator.attention_head_dim',
    'estimator_heads': 'decoder.estimator.num_heads',
    'transformers': 'decoder.estimator.n_blocks',
    'mid_blocks': 'decoder.estimator.num_mid_blocks',
    'sigma_min': 'decoder.cfm_params.sigma_min',
    'condition_dropout': 'decoder.cfm_params.training_cfg_rate',
    'guidance': 'decoder.cfm_params.inference_cfg_rate',
}
# Absent from upstream's file: a constant in its code.
_OPTIONAL = {'up_blocks'}


def _fixed(config: FlowConfig) -> dict[str, object]:
    """Keys that must have this value if present: choices we do not offer, and repeated numbers."""
    return {
        'encoder.input_size': config.input_size,
        'encoder.upsample_stride': config.ratio,
        'encoder.input_layer': 'linear',
        'encoder.pos_enc_layer_type': 'rel_pos_espnet',
        'encoder.selfattention_layer_type': 'rel_selfattn',
        'encoder.normalize_before': True,
        'encoder.use_cnn_module': False,
        'encoder.macaron_style': False,
        'decoder.spk_emb_dim': config.mels,
        'decoder.cfm_params.solver': 'euler',
        'decoder.cfm_params.t_scheduler': 'cosine',
        'decoder.estimator.in_channels': 4 * config.mels,
        'decoder.estimator.out_channels': config.mels,
        'decoder.estimator.dropout': 0.0,
        'decoder.estimator.act_fn': 'gelu',
        'decoder.estimator.static_chunk_size': config.ratio * config.chunk,
        'decoder.estimator.num_decoding_left_chunks': -1,
    }


# Present upstream and without effect here: frame rate, loss switches, dropout of positions and of
# attention weights (training drops activations only, by `dropout_rate`).
_IGNORED = {
    'output_type', 'input_frame_rate', 'only_mask_loss', 'encoder.positional_dropout_rate',
    'encoder.attention_dropout_rate', 'decoder.in_channels', 'decoder.n_spks',
    'decoder.cfm_params.reg_loss_type',
}  # fmt: skip


class _Ref(str):
    """The text of a `!ref`, looked up when a key that needs it is read."""


def read_config(path: str | Path) -> FlowConfig:
    """Reads a flow configuration file.

    Raises:
      InputError: not YAML, a key missing, of a wrong kind, or a choice that is not implemented.
    """
    root, where = read_yaml(path, _tagged), paths.printable(path)
    flow = root.get('flow') if isinstance(root, Mapping) else None
    if not isinstance(flow, Mapping):
        raise InputError(f"{where}: no mapping 'flow'; is this the decoder's flow/config.yaml?")
    return _from_flat(_flatten(flow, where), root, where)


def _tagged(tag: str, value: Any) -> Any:
    return _Ref(value) if tag == '!ref' and isinstance(value, str) else value


def _flatten(tree: Mapping, where: str, prefix: str = '') -> dict[str, object]:
    flat = {}
    for key, value in tree.items():
        # omegaconf's dictionary wraps its entries in one more level.
        name = prefix.rstrip('.') if key == 'content' else f'{prefix}{key}'
        inside = _flatten(value, where, f'{name}.') if isinstance(value, Mapping) else {name: value}
        if twice := sorted(set(inside) & set(flat)):
            raise InputError(f'{where}: flow.{twice[0]} is given twice; keep one')
        flat.update(inside)
    return flat


def _from_flat(flat: dict[str, object], root: Mapping, where: str) -> FlowConfig:
    references, given = _References(root, where), {}
    for field in dataclasses.fields(FlowConfig):
        key = _KEYS[field.name]
        if key in flat:
            value = references.resolve(flat[key])
            given[field.name] = _number(value, field.type, f'{where}: flow.{key}')
        elif field.name not in _OPTIONAL:
            raise InputError(f'{where}: flow.{key} is missing; compare with the released file')
    try:
        config = FlowConfig(**given)
    except InputError as error:
        raise InputError(f'{where}: {error}') from None
    fixed = _fixed(config)
    for key, wanted in fixed.items():
        found = references.resolve(flat.get(key, wanted))
        if found != wanted:
            raise InputError(
                f'{where}: flow.{key} is {values.shown(found)}; with the other keys only '
                f'{wanted!r} works'
            )
    unknown = sorted(set(flat) - set(_KEYS.values()) - set(fixed) - _IGNORED)
    if unknown:
        logging.warning('%s: keys without effect: %s', where, values.listed(unknown))
    return config


def _number(value: Any, kind: type, where: str) -> int | float:
    if isinstance(value, list):  # channels: a list with one entry a resolution level
        if len(value) != 1:
            raise InputError(
                f'{where} is {values.shown(value)}; only one resolution level is implemented'
            )
        value = value[0]
    if kind is float and isinstance(value, str):
        try:  # YAML 1.1 takes 1e-06 for a string
            value = float(value)
        except ValueError:
            pass
    return values.number(value, where)


_ARITHMETIC = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv,
}  # fmt: skip


class _References:
    """Looks `!ref` up: `<name>`, `<a.b>` or four-function arithmetic on such numbers."""

    def __init__(self, root: Mapping, where: str):
        self._root, self._where, self._known, self._asked = root, where, {}, []

    def resolve(self, value: Any) -> Any:
        """What a reference stands for; any other value is returned as it is.

        Raises:
          InputError: it names nothing, leads back to itself, or cannot be worked out.
        """
        if not isinstance(value, _Ref):
            return value
        if len(value) > MAX_REFERENCE:
            raise InputError(f'{self._where}: a reference of {len(value)} letters; write it out')
        if value in self._asked:
            raise InputError(f'{self._where}: references run in a circle at {value!s}')
        if value not in self._known:
            self._asked.append(value)
            self._known[value] = self._work_out(value)
            self._asked.pop()
        return self._known[value]

    def _work_out(self, text: str) -> Any:
        whole = re.fullmatch(r'\s*<([\w.]+)>\s*', text)
        if whole:
            return self._look_up(whole)
        filled = re.sub(r'<([\w.]+)>', lambda match: f'({self._look_up(match)})', text)
        try:
            return _arithmetic(ast.parse(filled.strip(), mode='eval').body)
        except (ArithmeticError, KeyError, RecursionError, TypeError, ValueError, SyntaxError):
            raise InputError(
                f'{self._where}: cannot work out {text}; write the number instead'
            ) from None

    def _look_up(self, match: re.Match) -> Any:
        node = self._root
        for key in match[1].split('.'):
            if not isinstance(node, Mapping) or key not in node:
                raise InputError(
                    f'{self._where}: refers to {match[0]}, which the file does not define'
                )
            node = node[key]
        return self.resolve(node)


def _arithmetic(node: ast.AST) -> int | float:
    """Every step is checked: products of products grow faster than anything."""
    if isinstance(node, ast.Constant):
        value = node.value
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = -_arithmetic(node.operand)
    elif isinstance(node, ast.BinOp):
        value = _ARITHMETIC[type(node.op)](_arithmetic(node.left), _arithmetic(node.right))
    else:
        raise TypeError(type(node).__name__)
    return values.number(value, 'a step')


def write_config(path: str | Path, config: FlowConfig) -> None:
    """Writes the file that `read_config` reads: plain YAML without tags, upstream's key names."""
    flow: dict = {}
    entries = {key: getattr(config, name) for name, key in _KEYS.items()} | _fixed(config)
    entries['decoder.estimator.channels'] = [config.channels]
    for key, value in entries.items():
        *parents, last = key.split('.')
        node = flow
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump({'flow': flow}, sort_keys=False), encoding='utf-8')
