"""The facts of a flow decoder: the entry `flow` of `flow/config.yaml`, the keys in `_KEYS`."""

from collections.abc import Mapping
import dataclasses
import os
from pathlib import Path
from typing import Any

from absl import logging

from mossjax import paths, values
from mossjax.convert.decoder_yaml import References, flatten, read_root, write_entry
from mossjax.errors import InputError
from mossjax.models.flow.config import FlowConfig

ENTRY = 'flow'
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
# Of training, and of streaming alone: where one is missing, it is as released.
_INERT = {'dropout', 'sigma_min', 'condition_dropout', 'chunk'}
# Absent from upstream's file: a constant in its code.
_OPTIONAL = {'up_blocks'} | _INERT


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
        'decoder.estimator.act_fn': 'gelu',
    }


def _passed_over(config: FlowConfig) -> dict[str, object]:
    """Keys that an offline decode does not ask: another value is said, and this one is used."""
    return {
        'decoder.estimator.dropout': 0.0,
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


def described(path: str | Path) -> bool:
    """Whether the file is there and has an entry for the decoder."""
    return os.path.lexists(path) and isinstance(read_root(path).get(ENTRY), Mapping)


def read_config(path: str | Path) -> FlowConfig:
    """Reads a flow configuration file.

    Raises:
      InputError: not YAML, a key missing, of a wrong kind, or a choice that is not implemented.
    """
    root, where = read_root(path), paths.printable(path)
    if not isinstance(root.get(ENTRY), Mapping):
        raise InputError(f"{where}: no mapping 'flow'; is this the decoder's flow/config.yaml?")
    leaves = {*_KEYS.values(), *_fixed(FlowConfig()), *_passed_over(FlowConfig())}
    return _from_flat(flatten(root[ENTRY], f'{where}: {ENTRY}', leaves), root, where)


def _from_flat(flat: dict[str, object], root: Mapping, where: str) -> FlowConfig:
    references, given = References(root, where), {}
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
    passed = _passed_over(config)
    for key, used in passed.items():
        if (found := references.resolve(flat.get(key, used))) != used:
            logging.warning(
                '%s: flow.%s is %s; %s is used, which is the same unless it trains or streams',
                where, key, values.shown(found), used,
            )  # fmt: skip
    unknown = sorted(set(flat) - set(_KEYS.values()) - set(fixed) - set(passed) - _IGNORED)
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


def differing(a: FlowConfig, b: FlowConfig) -> list[str]:
    """Names of fields in which they differ, those that an offline decode does not ask left out."""
    names = [field.name for field in dataclasses.fields(a) if field.name not in _INERT]
    return [name for name in names if getattr(a, name) != getattr(b, name)]


def write_config(path: str | Path, config: FlowConfig) -> None:
    """Writes the file that `read_config` reads: plain YAML without tags, upstream's key names."""
    entries = {key: getattr(config, name) for name, key in _KEYS.items()}
    entries |= _fixed(config) | _passed_over(config)
    entries['decoder.estimator.channels'] = [config.channels]
    write_entry(path, ENTRY, entries)
