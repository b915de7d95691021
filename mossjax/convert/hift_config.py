"""The vocoder's facts: the entry `hift` of `flow/config.yaml`, or read off the weights."""

from collections.abc import Mapping
import dataclasses
import os
from pathlib import Path

from absl import logging

from mossjax.convert.decoder_yaml import References, flatten, read_root, write_entry
from mossjax.errors import InputError
from mossjax.models.flow import mel as features
from mossjax.models.vocoder.hift.config import HiftConfig
from mossjax.values import NOT_NEGATIVE, SIZE, number, shown

ENTRY = 'hift'
# Where a field stands under `hift:`.
_KEYS = {
    'mels': 'in_channels',
    'channels': 'base_channels',
    'harmonics': 'nb_harmonics',
    'sine': 'nsf_alpha',
    'noise': 'nsf_sigma',
    'voiced': 'nsf_voiced_threshold',
    'rates': 'upsample_rates',
    'kernels': 'upsample_kernel_sizes',
    'n_fft': 'istft_params.n_fft',
    'hop': 'istft_params.hop_len',
    'block_kernels': 'resblock_kernel_sizes',
    'source_kernels': 'source_resblock_kernel_sizes',
    'slope': 'lrelu_slope',
    'limit': 'audio_limit',
    'f0_width': 'f0_predictor.cond_channels',
}
# One list of dilations a block upstream; here all blocks have the same.
_DILATIONS = ('resblock_dilation_sizes', 'source_resblock_dilation_sizes')


def _fixed(config: HiftConfig) -> dict[str, object]:
    """Keys that must have this value if present."""
    return {
        'sampling_rate': features.RATE,
        'f0_predictor.in_channels': config.mels,
        'f0_predictor.num_class': 1,
        _DILATIONS[0]: [list(config.dilations) for _ in config.block_kernels],
        _DILATIONS[1]: [list(config.dilations) for _ in config.source_kernels],
    }


def read(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> HiftConfig:
    """The configuration of the vocoder whose tensors have these shapes.

    Args:
      path: `flow/config.yaml`. Where it does not exist, or has no entry `hift`, widths are those of
        the tensors and all else is as released. A key that is missing means the released value.

    Raises:
      InputError: a value of a wrong kind, or a choice that is not implemented.
    """
    root = read_root(path) if os.path.lexists(path) else {}
    if not isinstance(root.get(ENTRY), Mapping):
        return of_tensors(shapes)
    references = References(root, str(path))
    leaves = {*_KEYS.values(), *_fixed(HiftConfig())}
    flat = flatten(root[ENTRY], f'{path}: {ENTRY}', leaves)
    flat = {key: references.resolve(value) for key, value in flat.items()}
    fields = {f.name: f for f in dataclasses.fields(HiftConfig)}
    values = {
        name: field(flat[key], fields[name].default, f'{path}: {ENTRY}.{key}')
        for name, key in _KEYS.items()
        if key in flat
    }
    if _DILATIONS[0] in flat:
        values['dilations'] = field(
            _first(flat[_DILATIONS[0]]), (1,), f'{path}: {ENTRY}.{_DILATIONS[0]}'
        )
    try:
        config = HiftConfig(**values)
    except InputError as error:
        raise InputError(f'{path}: {error}') from None
    for key, wanted in _fixed(config).items():
        if key in flat and flat[key] != wanted:
            raise InputError(
                f'{path}: {ENTRY}.{key} is {flat[key]!r}; with the other keys only {wanted!r} works'
            )
    unknown = sorted(set(flat) - {*_KEYS.values(), *_fixed(config)})
    if unknown:
        logging.warning('%s: %s keys without effect: %s', path, ENTRY, ', '.join(unknown))
    return config


def described(path: Path) -> bool:
    """Whether the file is there and has an entry for the vocoder."""
    return os.path.lexists(path) and isinstance(read_root(path).get(ENTRY), Mapping)


def write(path: Path, config: HiftConfig) -> None:
    """Sets the entry that `read` reads; the others of the file stay."""
    entries = {key: getattr(config, name) for name, key in _KEYS.items()} | _fixed(config)
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in entries.items()}
    write_entry(path, ENTRY, plain)


def differing(a: HiftConfig, b: HiftConfig) -> list[str]:
    """Names of fields in which they differ."""
    return [f.name for f in dataclasses.fields(a) if getattr(a, f.name) != getattr(b, f.name)]


def of_tensors(shapes: Mapping[str, tuple[int, ...]]) -> HiftConfig:
    """The released configuration with the widths that these tensors have."""
    sizes = {
        'channels': shapes.get('conv_pre.bias'),
        'f0_width': shapes.get('f0_predictor.condnet.0.bias'),
    }
    return HiftConfig(**{name: shape[0] for name, shape in sizes.items() if shape})


def _first(lists) -> object:
    return lists[0] if isinstance(lists, (list, tuple)) and lists else lists


def field(value, example, where: str):
    """A number, or a tuple of whole numbers, of the kind of the example.

    Raises:
      InputError: it is of another kind.
    """
    if isinstance(example, tuple):
        if not isinstance(value, (list, tuple)):
            raise InputError(f'{where} is {shown(value)}, expected a list of whole numbers')
        return tuple(number(n, where, SIZE) for n in value)
    return number(value, where, SIZE if isinstance(example, int) else NOT_NEGATIVE)
