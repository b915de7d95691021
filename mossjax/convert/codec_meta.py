"""What the meta item of a checkpoint says of the networks of a codec's decoder, and read back.

    {"kind": "codec", "configs": {the tokenizer's two files}, "prefix": of its tensors,
     "parts": {"flow/hift": {"suffix": ".pt", "config": {...}, "spelled": {convolution: "old"}}}}

The meta item of a training run has one part, and "trained": its parameters stand for themselves.
"""

from collections.abc import Mapping, Sequence
import dataclasses

from mossjax import values
from mossjax.convert import hift_config
from mossjax.convert.codec_parts import FLOW, ONNX, SAFETENSORS, TORCH, Part
from mossjax.convert.hift_rules import FOLDED, NEW, OLD, convolutions
from mossjax.convert.source import CODEC, DECODER
from mossjax.errors import InputError
from mossjax.models.flow.config import FlowConfig
from mossjax.models.speaker.config import CamppConfig
from mossjax.models.vocoder.hift.config import HiftConfig

_SPELLINGS = {'new': NEW, 'old': OLD, 'folded': FOLDED}
_CONFIGS = {'flow': FlowConfig, 'hift': HiftConfig, 'campplus': CamppConfig}
_MOST = 16  # entries of a list of numbers


def describe(part: Part) -> dict:
    """One entry of "parts"."""
    config = {
        name: sorted(value) if isinstance(value, frozenset) else value
        for name, value in dataclasses.asdict(part.config).items()
    }
    names = {spelling: name for name, spelling in _SPELLINGS.items()}
    spelled = {conv: names[spelling] for conv, spelling in part.spelled.items()}
    return {'suffix': part.suffix, 'config': config} | ({'spelled': spelled} if spelled else {})


def run_meta(part: Part, inside: str = '', beside: Sequence[str] = ()) -> dict:
    """The 'model' of the meta item of a run that trains this part, so that it can be exported.

    Args:
      inside: branch of the run's parameters that holds the network, e.g. 'generator/'.
      beside: last names of parameters whose values the run keeps in its extra state instead, under
        their paths in the network.
    """
    return {
        'kind': CODEC, 'configs': {}, 'parts': {part.name: describe(part)}, 'trained': True,
        'inside': inside,
    } | ({'beside': list(beside)} if beside else {})  # fmt: skip


def of_meta(model: Mapping, where: str) -> list[Part]:
    """The parts that a meta item describes.

    Raises:
      InputError: it is damaged.
    """
    parts = model.get('parts')
    if not isinstance(parts, dict) or model.get('trained') and len(parts) != 1:
        raise _damaged(where, 'parts', parts)
    return [_part(name, content, model, where) for name, content in sorted(parts.items())]


def _part(name: str, content: object, model: Mapping, where: str) -> Part:
    folder, _, stem = name.partition('/')
    kind = 'flow' if FLOW.fullmatch(stem) else stem
    if folder != DECODER or kind not in _CONFIGS or not isinstance(content, dict):
        raise _damaged(where, 'parts', name)
    suffix, spelled = content.get('suffix'), content.get('spelled', {})
    if suffix not in (SAFETENSORS, ONNX if kind == 'campplus' else TORCH):
        raise _damaged(where, f'{name}: suffix', suffix)
    config = _config(_CONFIGS[kind], content.get('config'), f'{where}: {name}')
    known = {conv.name for conv in convolutions(config)} if kind == 'hift' else set()
    if not isinstance(spelled, dict) or set(spelled) - known or not all(
        isinstance(s, str) and s in _SPELLINGS for s in spelled.values()
    ):
        raise _damaged(where, f'{name}: spelled', spelled)
    spelled = {conv: _SPELLINGS[s] for conv, s in spelled.items()}
    return Part(name, suffix, config, spelled, bool(model.get('trained')))


def _config(cls: type, content: object, where: str):
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if not isinstance(content, dict) or set(content) != set(fields):
        raise _damaged(where, 'config', content)
    found = {}
    for name, value in content.items():
        example = fields[name].default
        if isinstance(example, frozenset):
            if not isinstance(value, list) or not all(isinstance(path, str) for path in value):
                raise _damaged(where, name, value)
            found[name] = frozenset(value)
        elif isinstance(value, list) and len(value) > _MOST:
            raise _damaged(where, name, value)
        else:
            found[name] = hift_config.field(value, example, f'{where}: {name}')
    return cls(**found)


def _damaged(where: str, what: str, value: object) -> InputError:
    return InputError(
        f'{where}: {what} in its meta item is {values.shown(value)}; copy the checkpoint again'
    )
