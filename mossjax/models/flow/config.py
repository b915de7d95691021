"""Facts about a flow decoder, read from and written to `flow/config.yaml`.

The released file is a program in disguise: YAML whose tags name Python classes to build. Here a
tag is read as the plain mapping below it and nothing is ever executed; `!ref <name>` (alone or in
a product) is looked up. Only the `flow` entry matters, and of it only the keys in `_KEYS`.
"""

import ast
from collections.abc import Mapping
import dataclasses
import math
import operator
from pathlib import Path
import re

from absl import logging
import yaml

from mossjax.errors import InputError
from mossjax.files import replacing

MAX_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Context:
    """What a code may depend on: the four streaming modes as data.

    Attributes:
      chunk: codes per block of the block-causal mask; None lets every position see every other.
      held: the last `held` codes are look-ahead only, they give no frames (the end is not known
        yet). 0 when the utterance is complete.
    """

    chunk: int | None = None
    held: int = 0


OFFLINE = Context()


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """Codes -> mel. The defaults are the released MOSS-Speech decoder; widths in channels.

    Attributes:
      vocab_size: rows of the code table (16384 codes and spares in the released model).
      input_size: width of the code embedding.
      mels: mel bins of the output (80).
      xvector_size: length of a speaker vector.
      ratio: mel frames per code; also the factor of the upsampling layer.
      lookahead: codes to the right that the look-ahead convolution sees.
      width, heads, ff_width, blocks: the conformer stack at code rate.
      up_blocks: conformer blocks at mel rate (a constant upstream).
      dropout: rate inside the conformer in training.
      chunk: codes per block when streaming; the estimator's block is `ratio` times as many frames.
      channels, head_dim, estimator_heads, transformers, mid_blocks: the velocity network.
      sigma_min: noise left at t = 1.
      condition_dropout: chance that a training item loses all its conditions.
      guidance: weight of classifier-free guidance.
    """

    vocab_size: int = 20480
    input_size: int = 512
    mels: int = 80
    xvector_size: int = 192
    ratio: int = 4
    lookahead: int = 3
    width: int = 512
    heads: int = 8
    ff_width: int = 2048
    blocks: int = 6
    up_blocks: int = 4
    dropout: float = 0.1
    chunk: int = 5
    channels: int = 256
    head_dim: int = 64
    estimator_heads: int = 8
    transformers: int = 4
    mid_blocks: int = 12
    sigma_min: float = 1e-6
    condition_dropout: float = 0.2
    guidance: float = 0.7

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in (int, 'int'):
                if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    raise InputError(
                        f'flow config: {field.name} is {value!r}, it must be a positive integer'
                    )
            elif not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
                raise InputError(
                    f'flow config: {field.name} is {value!r}, it must be a number >= 0'
                )
        for name in ('sigma_min', 'condition_dropout', 'dropout'):
            if getattr(self, name) >= 1:
                raise InputError(f'flow config: {name} is {getattr(self, name)}, it must be < 1')
        if self.width % self.heads or self.width % 2:
            raise InputError(
                f'flow config: width {self.width} must be even and divisible by heads {self.heads}'
            )
        if self.mels % 2:
            raise InputError(f'flow config: mels is {self.mels}, it must be even')

    def context(self, *, streaming: bool, finalize: bool) -> Context:
        """The mode that upstream spells with these two flags."""
        return Context(self.chunk if streaming else None, 0 if finalize else self.lookahead)


def released() -> FlowConfig:
    """The released MOSS-Speech flow decoder (codec snapshot, `flow/config.yaml`)."""
    return FlowConfig()


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


class _PlainLoader(yaml.SafeLoader):
    """YAML in which an unknown tag means nothing: its node is read as plain data."""


def _plain(loader: _PlainLoader, suffix: str, node: yaml.Node):
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    value = loader.construct_scalar(node)
    return _Ref(value) if suffix == 'ref' else value


_PlainLoader.add_multi_constructor('!', _plain)
_PlainLoader.add_multi_constructor('', _plain)  # `!!python/...` included


def read_config(path: str | Path) -> FlowConfig:
    """Reads a flow configuration file.

    Raises:
      InputError: not YAML, a key missing, of a wrong kind, or a choice that is not implemented.
    """
    path = Path(path)
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f'{path}: larger than {MAX_BYTES} bytes, this is no flow configuration')
    try:
        root = yaml.load(path.read_text(encoding='utf-8'), _PlainLoader)  # noqa: S506
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(f'{path}: not readable as YAML ({error}); download it again') from error
    flow = root.get('flow') if isinstance(root, Mapping) else None
    if not isinstance(flow, Mapping):
        raise InputError(f"{path}: no mapping 'flow'; is this the decoder's flow/config.yaml?")
    return _from_flat(_flatten(flow), root, str(path))


def _flatten(tree: Mapping, prefix: str = '') -> dict[str, object]:
    flat = {}
    for key, value in tree.items():
        # omegaconf's dictionary wraps its entries in one more level.
        name = prefix.rstrip('.') if key == 'content' else f'{prefix}{key}'
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f'{name}.'))
        else:
            flat[name] = value
    return flat


def _from_flat(flat: dict[str, object], root: Mapping, where: str) -> FlowConfig:
    fields = {field.name: field.type for field in dataclasses.fields(FlowConfig)}
    values = {}
    for name, key in _KEYS.items():
        if key in flat:
            values[name] = _number(flat[key], fields[name], root, f'{where}: flow.{key}')
        elif name not in _OPTIONAL:
            raise InputError(f'{where}: flow.{key} is missing; compare with the released file')
    try:
        config = FlowConfig(**values)
    except InputError as error:
        raise InputError(f'{where}: {error}') from None
    fixed = _fixed(config)
    for key, wanted in fixed.items():
        found = _resolve(flat.get(key, wanted), root, f'{where}: flow.{key}')
        if found != wanted:
            raise InputError(
                f'{where}: flow.{key} is {found!r}; with the other keys only {wanted!r} works'
            )
    unknown = sorted(set(flat) - set(_KEYS.values()) - set(fixed) - _IGNORED)
    if unknown:
        logging.warning('%s: keys without effect: %s', where, ', '.join(unknown))
    return config


def _number(value, kind, root: Mapping, where: str) -> int | float:
    value = _resolve(value, root, where)
    if isinstance(value, (list, tuple)):  # channels: a list with one entry a resolution level
        if len(value) != 1:
            raise InputError(f'{where} is {value}; only one resolution level is implemented')
        value = value[0]
    if kind in (float, 'float') and isinstance(value, str):
        try:  # YAML 1.1 takes 1e-06 for a string
            return float(value)
        except ValueError:
            pass
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f'{where} is {value!r}, it must be a number')
    return value


_ARITHMETIC = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv,
}  # fmt: skip


def _resolve(value, root: Mapping, where: str, depth: int = 0):
    """Looks a `!ref` up: `<name>`, `<a.b>` or four-function arithmetic on such numbers."""
    if not isinstance(value, _Ref):
        return value
    if depth > 8:
        raise InputError(f'{where}: references run in a circle at {value!s}')

    def look_up(match: re.Match):
        node = root
        for key in match[1].split('.'):
            if not isinstance(node, Mapping) or key not in node:
                raise InputError(f'{where}: refers to {match[0]}, which the file does not define')
            node = node[key]
        return _resolve(node, root, where, depth + 1)

    whole = re.fullmatch(r'\s*<([\w.]+)>\s*', value)
    if whole:
        return look_up(whole)
    text = re.sub(r'<([\w.]+)>', lambda m: f'({look_up(m)})', value)
    try:
        return _arithmetic(ast.parse(text.strip(), mode='eval').body)
    except (SyntaxError, KeyError, TypeError, ZeroDivisionError) as error:
        raise InputError(f'{where}: cannot work out {value!s}; write the number instead') from error


def _arithmetic(node: ast.AST) -> int | float:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_arithmetic(node.operand)
    if isinstance(node, ast.BinOp):
        return _ARITHMETIC[type(node.op)](_arithmetic(node.left), _arithmetic(node.right))
    raise TypeError(type(node).__name__)


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
