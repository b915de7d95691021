"""The vocoder's half of a codec directory: `flow/hift.*`, and its entry in `flow/config.yaml`."""

from collections.abc import Mapping
import functools
from pathlib import Path

import jax
import numpy as np

from mossjax.convert import (
    hift_config,
    names,
    rules,
    safetensors_io,
    torch_writer,
    weight_files,
)
from mossjax.convert.decoder_yaml import plain_root
from mossjax.convert.hift_rules import NEW, hift_rules, normed_kernels, spellings, spellings_of
from mossjax.convert.weight_files import Tensors
from mossjax.models.vocoder.hift.config import HiftConfig
from mossjax.models.vocoder.hift.model import Hift
from mossjax.nn import weight_norm
from mossjax.nn.param import Network, describe

STEM, SUFFIXES = 'hift', ('.safetensors', '.pt')
# Names that are the same in every spelling of weight norm.
TELLING = ('conv_pre.bias', 'conv_post.bias', 'm_source.l_linear.weight')


@functools.cache  # describing takes a second
def hift_network(config: HiftConfig) -> Network:
    """The network that runs: plain kernels."""
    return describe(lambda rngs: Hift(config, rngs=rngs))


def stored_network(config: HiftConfig, tensors=()) -> Network:
    """The network whose parameters are what a checkpoint with these tensor names holds."""
    return spelled_network(config, spellings(config, tensors))


def spelled_network(config: HiftConfig, spelled: Mapping[str, tuple[str, ...]]) -> Network:
    """The same by how each convolution is spelled, see `hift_rules.spellings`."""
    return weight_norm.normed(hift_network(config), normed_kernels(config, spelled))


def has_vocoder(codec_dir: str | Path) -> bool:
    """Whether a codec directory has a trained vocoder."""
    return weight_files.find(Path(codec_dir) / 'flow', STEM) is not None


def open_files(codec_dir: str | Path) -> tuple[Path, HiftConfig, dict, Tensors]:
    """(file, configuration, spelling of each convolution, lazy tensors) of a codec's vocoder.

    Raises:
      InputError: no such file, or weights that do not fit the configuration.
    """
    directory = Path(codec_dir) / 'flow'
    path, weights = weight_files.open_stem(directory, STEM)
    tensors = names.fitted(weights, TELLING, str(path))
    config = hift_config.read(directory / 'config.yaml', tensors.shapes)
    spelled = spellings(config, tensors.shapes)
    shapes = spelled_network(config, spelled).shapes
    rules.check(
        hift_rules(config, spelled), tensors.shapes, shapes, where=str(path), dtypes=tensors.dtypes
    )
    return path, config, spelled, tensors


def open_stored(codec_dir: str | Path) -> tuple[HiftConfig, dict]:
    """(configuration, parameters of `stored_network`, float32 numpy) of a codec's vocoder.

    Raises:
      InputError: as of `open_files`.
    """
    _, config, spelled, tensors = open_files(codec_dir)
    return config, rules.to_params(
        hift_rules(config, spelled), lambda name: tensors.read(name).astype('float32'),
        spelled_network(config, spelled).shapes,
    )


def open_hift(codec_dir: str | Path) -> tuple[HiftConfig, dict]:
    """(configuration, parameters of `hift_network`) of a codec's vocoder, weight norm worked in.

    Raises:
      InputError: as of `open_files`.
    """
    config, params = open_stored(codec_dir)
    return config, weight_norm.fold(params)


def save_hift(
    codec_dir: str | Path, config: HiftConfig, params: dict, *, suffix: str = '.pt',
    normed: tuple[str, ...] = NEW,
) -> None:
    """Writes the vocoder under upstream's tensor names.

    Args:
      params: of either network; plain kernels are written as `X.weight`.
      suffix: '.pt', which upstream loads, or '.safetensors'.
      normed: how weight norm is spelled, `hift_rules.NEW` or `OLD`.

    Raises:
      InputError: there is another file of settings than was written here, or the disk is full.
    """
    directory = Path(codec_dir) / 'flow'
    directory.mkdir(parents=True, exist_ok=True)
    plain_root(directory / 'config.yaml')
    host = jax.tree.map(np.asarray, params)
    tensors = rules.to_tensors(hift_rules(config, spellings_of(config, host, normed)), host)
    # Weights never stand beside the settings of others, nor beside an older form of themselves.
    for old in SUFFIXES:
        (directory / f'{STEM}{old}').unlink(missing_ok=True)
    hift_config.write(directory / 'config.yaml', config)
    path = directory / f'{STEM}{suffix}'
    if suffix == '.pt':
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
        torch_writer.write(path, shapes, dtypes, tensors.__getitem__)
    else:
        safetensors_io.write(path, tensors)
