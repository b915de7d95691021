"""The speaker encoder of a codec directory: `flow/campplus.onnx` or `flow/campplus.safetensors`."""

import functools
from pathlib import Path

import jax
import numpy as np

from mossjax.convert import campp_onnx, names, rules, safetensors_io, weight_files
from mossjax.convert.campp_rules import campp_rules, config_of
from mossjax.convert.weight_files import Tensors
from mossjax.errors import InputError
from mossjax.models.speaker.config import CamppConfig
from mossjax.models.speaker.model import Campp
from mossjax.nn.param import Network, describe

STEM, SUFFIXES = 'campplus', ('.safetensors', '.onnx')
EMBED = 'xvector.dense.linear.weight'
TELLING = ('head.conv1.weight', 'xvector.tdnn.linear.weight', EMBED)


@functools.cache  # describing takes a second
def campp_network(config: CamppConfig, **options) -> Network:
    """The network of a configuration; `options` are `Campp`'s keyword arguments."""
    return describe(lambda rngs: Campp(config, rngs=rngs, **options))


def has_speaker(codec_dir: str | Path) -> bool:
    """Whether a codec directory has a speaker encoder."""
    return _file(codec_dir) is not None


def can_read(codec_dir: str | Path) -> bool:
    """Whether it has one, in a format that can be read on this machine."""
    path = _file(codec_dir)
    return path is not None and (path.suffix != '.onnx' or campp_onnx.available())


def open_tensors(codec_dir: str | Path):
    """(path, lazy tensors under torch's names) of a codec's speaker encoder.

    Raises:
      InputError: no such file, another graph, or `onnx` is not installed.
    """
    path = _file(codec_dir)
    if path is None:
        raise InputError(
            f'{codec_dir}/flow: neither {STEM}.onnx nor {STEM}.safetensors; the vector of a voice '
            'needs the speaker encoder, pass the whole codec directory'
        )
    if path.suffix == '.onnx':
        return path, campp_onnx.OnnxTensors(path)
    return path, names.fitted(weight_files.open_tensors(path), TELLING, str(path))


def open_files(codec_dir: str | Path) -> tuple[Path, CamppConfig, Tensors]:
    """(file, configuration, lazy tensors under torch's names) of a codec's speaker encoder.

    Norms stay folded where the file has them so, see `CamppConfig.folded`.

    Raises:
      InputError: as of `open_tensors`, or weights that fit no configuration.
    """
    path, tensors = open_tensors(codec_dir)
    config = config_of(tensors.shapes, str(path))
    table, shapes = campp_rules(config), campp_network(config).shapes
    rules.check(table, tensors.shapes, shapes, where=str(path), dtypes=tensors.dtypes)
    return path, config, tensors


def open_campp(codec_dir: str | Path) -> tuple[CamppConfig, dict]:
    """(configuration, float32 numpy parameters) of a codec's speaker encoder.

    Raises:
      InputError: as of `open_files`.
    """
    _, config, tensors = open_files(codec_dir)
    return config, rules.to_params(
        campp_rules(config), lambda name: tensors.read(name).astype('float32'),
        campp_network(config).shapes,
    )


def save_campp(codec_dir: str | Path, config: CamppConfig, params: dict) -> None:
    """Writes `flow/campplus.safetensors` under torch's names.

    Raises:
      InputError: the disk is full.
    """
    directory = Path(codec_dir) / 'flow'
    directory.mkdir(parents=True, exist_ok=True)
    host = jax.tree.map(np.asarray, params)
    tensors = rules.to_tensors(campp_rules(config), host)
    safetensors_io.write(directory / f'{STEM}.safetensors', tensors)


def _file(codec_dir: str | Path) -> Path | None:
    return weight_files.find(Path(codec_dir) / 'flow', STEM, SUFFIXES)
