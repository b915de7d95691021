"""A codec directory in either form: the released one, or the Orbax one that `convert` wrote of it.

What speaks and hears opens its networks here, one by one. In the Orbax form all are in one tree;
of a training run, one alone may be.
"""

from collections.abc import Collection
import functools
from pathlib import Path

import numpy as np

from mossjax import checkpoint
from mossjax.convert import (
    certificate,
    codec_flow,
    codec_speaker,
    codec_tokenizer,
    codec_vocoder,
    fingerprint,
    kinds,
    rules,
    weight_files,
)
from mossjax.convert.source import CODEC, DECODER, TOKENIZER, Source, without
from mossjax.errors import InputError
from mossjax.models.flow.config import FlowConfig
from mossjax.models.speaker.config import CamppConfig
from mossjax.models.tokenizer.config import TokenizerConfig
from mossjax.models.tokenizer.quantizer import Codebook
from mossjax.models.vocoder.hift.config import HiftConfig
from mossjax.nn import weight_norm

SUFFIXES = ('.safetensors', '.pt', '.onnx')  # of files of the decoder's networks


def open_tokenizer(codec_dir: str | Path) -> tuple[TokenizerConfig, dict]:
    """See `codec_tokenizer.open_tokenizer`.

    Raises:
      InputError: there is no speech tokenizer, or it is damaged.
    """
    source = _orbax(codec_dir)
    if source is None:
        return codec_tokenizer.open_tokenizer(codec_dir)
    opened = _tokenizer(source)
    return opened.config, codec_tokenizer.encoder(opened)


def open_trained(codec_dir: str | Path, config: TokenizerConfig) -> tuple[dict, Codebook]:
    """See `codec_tokenizer.open_trained`.

    Raises:
      InputError: there is no speech tokenizer, or it is damaged, or another one than `config`.
    """
    source = _orbax(codec_dir)
    if source is None:
        return codec_tokenizer.open_trained(codec_dir, config)
    return codec_tokenizer.trained(_tokenizer(source), config)


def open_tokenizer_config(codec_dir: str | Path) -> TokenizerConfig:
    """The configuration of the speech tokenizer, whose weights are there.

    Raises:
      InputError: see `codec_tokenizer.open_files`, or an Orbax form without a speech tokenizer.
    """
    source = _orbax(codec_dir)
    if source is None:
        return codec_tokenizer.open_files(Path(codec_dir))[0]
    return _tokenizer(source).config


def tokenizer_files(codec_dir: str | Path) -> list[Path]:
    """The files that decide which codes it gives; of an Orbax form all, see `weights`."""
    source, root = _orbax(codec_dir), Path(codec_dir)
    if source is None:
        return sorted([*root.glob('*config.json'), *root.glob('*.safetensors')])
    return [root / name for name in source.weights]


def has_tokenizer(codec_dir: str | Path) -> bool:
    """Whether it can hear: a speech tokenizer is there, or a part of one."""
    source = _orbax(codec_dir)
    if source is None:
        return codec_tokenizer.has_tokenizer(codec_dir)
    return source.kind.config is not None


def has_decoder(codec_dir: str | Path) -> bool:
    """Whether it can speak at all: a flow decoder is there, or what should be its folder."""
    source = _orbax(codec_dir)
    if source is None:
        return (Path(codec_dir) / DECODER).is_dir()
    return any(isinstance(part.config, FlowConfig) for part in source.kind.parts)


def has(codec_dir: str | Path, stem: str) -> bool:
    """Whether a network of the decoder is there, by its stem: 'flow-chunk-5', 'hift', ..."""
    source = _orbax(codec_dir)
    if source is not None:
        return any(part.name == f'{DECODER}/{stem}' for part in source.kind.parts)
    if stem == codec_speaker.STEM:
        return codec_speaker.has_speaker(codec_dir)
    return weight_files.find(Path(codec_dir) / DECODER, stem) is not None


def open_config(codec_dir: str | Path) -> FlowConfig:
    """The configuration of the flow decoder.

    Raises:
      InputError: see `codec_flow.open_config`, or an Orbax form without a flow decoder.
    """
    source = _orbax(codec_dir)
    if source is None:
        return codec_flow.open_config(codec_dir)
    found = [part.config for part in source.kind.parts if isinstance(part.config, FlowConfig)]
    if not found:
        raise _missing(codec_dir, 'flow decoder')
    return found[0]


def open_flow(codec_dir: str | Path, stem: str = codec_flow.STEM) -> tuple[FlowConfig, dict]:
    """See `codec_flow.open_flow`."""
    source = _orbax(codec_dir)
    return codec_flow.open_flow(codec_dir, stem) if source is None else _part(source, stem)


def open_hift(codec_dir: str | Path) -> tuple[HiftConfig, dict]:
    """See `codec_vocoder.open_hift`."""
    source = _orbax(codec_dir)
    if source is None:
        return codec_vocoder.open_hift(codec_dir)
    config, params = _part(source, codec_vocoder.STEM)
    return config, weight_norm.fold(params)


def open_campp(codec_dir: str | Path) -> tuple[CamppConfig, dict]:
    """See `codec_speaker.open_campp`."""
    source = _orbax(codec_dir)
    if source is None:
        return codec_speaker.open_campp(codec_dir)
    return _part(source, codec_speaker.STEM)


def prints(
    codec_dir: str | Path, parts: Collection[str] = (fingerprint.CODEBOOK, fingerprint.SPEAKER)
) -> dict[str, bytes]:
    """See `fingerprint.fingerprint`: both forms of a codec have the same."""
    source = _orbax(codec_dir)
    if source is None:
        return fingerprint.fingerprint(codec_dir, parts)
    codebook = [rule.name for rule in source.kind.rules if rule.path == 'codebook']
    speaker = [f'{DECODER}/{codec_speaker.STEM}/{codec_speaker.EMBED}']
    names = {fingerprint.CODEBOOK: codebook, fingerprint.SPEAKER: speaker}
    return {
        part: fingerprint.digest(source.tensors.read(name))
        for part in parts for name in names[part] if name in source.tensors.shapes
    }


def weights(
    codec_dir: str | Path, stems: Collection[str], tokenizer: bool = False
) -> list[str]:
    """SHA-256 of the files that hold these networks of the decoder, and of their settings.

    An Orbax form has all networks in the same files, so those are all of its files.

    Args:
      tokenizer: the speech tokenizer's as well.
    """
    source, root = _orbax(codec_dir), Path(codec_dir)
    if source is None:
        found = [weight_files.find(root / DECODER, stem, SUFFIXES) for stem in stems]
        files = [root / DECODER / 'config.yaml', *filter(None, found)]
        files += tokenizer_files(codec_dir) if tokenizer else []
    else:
        files = [root / name for name in source.weights]
    return [certificate.file_record(file)['sha256'] for file in files if file.is_file()]


def _tokenizer(source: Source) -> codec_tokenizer.Opened:
    """The speech tokenizer of an Orbax form; what a file held beside it is among its tensors."""
    if source.kind.config is None:
        raise _missing(source.path, 'speech tokenizer')
    name = next(rule.name for rule in source.kind.rules if rule.path == 'codebook')
    return codec_tokenizer.Opened(
        source.kind.config, without(source.tensors, f'{DECODER}/'),
        name.removesuffix('codebook.weight'), str(source.path),
    )


def _part(source: Source, stem: str) -> tuple:
    """(configuration, float32 parameters as stored) of a network of the decoder."""
    name = f'{DECODER}/{stem}'
    part = next((part for part in source.kind.parts if part.name == name), None)
    if part is None:
        raise _missing(source.path, name)

    def read(tensor: str) -> np.ndarray:
        return np.asarray(source.tensors.read(part.front + tensor), np.float32)

    return part.config, rules.to_params(part.rules, read, part.network.shapes)


def _missing(codec_dir: str | Path, what: str) -> InputError:
    return InputError(
        f'{codec_dir}: this checkpoint holds no {what}; convert the whole codec directory, or give '
        'the directory itself'
    )


def _orbax(codec_dir: str | Path) -> Source | None:
    """The Orbax form in a directory; None where it is in the released form, or nothing."""
    path = Path(codec_dir)
    root = kinds.find_root(path)
    if root is None:
        return None
    step = checkpoint.find_step(root, items=('params', 'extra'))
    changed = max(p.stat().st_mtime_ns for p in (root / str(step)).iterdir())
    source = _opened(path, step, changed)
    if source.kind.name not in (CODEC, TOKENIZER):
        raise InputError(
            f'{codec_dir} holds a {source.kind.name}, which is no codec; give the directory of the '
            'MOSS-Speech codec, or its Orbax form'
        )
    return source


@functools.lru_cache(maxsize=2)  # a command asks for one network after the other
def _opened(path: Path, step: int, changed: int) -> Source:
    """`step` and `changed` tell the contents of a directory from those it had before."""
    return kinds.open_source(path)
