"""The flow decoder's half of a codec directory: `flow/config.yaml` and `flow/flow.*`."""

import functools
import os
from pathlib import Path

from mossjax.convert import names, rules, safetensors_io
from mossjax.convert.decoder_yaml import plain_root
from mossjax.convert.flow_config import read_config, write_config
from mossjax.convert.flow_rules import flow_rules
from mossjax.convert.weight_files import Tensors, open_stem
from mossjax.models.flow.config import FlowConfig, released
from mossjax.models.flow.model import FlowDecoder
from mossjax.nn.param import Network, describe

STEM = 'flow'


@functools.cache  # describing takes a second
def flow_network(config: FlowConfig, **modules) -> Network:
    """The network of a configuration; `modules` are FlowDecoder's keyword arguments."""
    return describe(lambda rngs: FlowDecoder(config, rngs=rngs, **modules))


def open_config(codec_dir: str | Path) -> FlowConfig:
    """The configuration of a codec directory's decoder: `flow/config.yaml`, else the released one.

    Raises:
      InputError: see `flow_config.read_config`.
    """
    path = Path(codec_dir) / 'flow' / 'config.yaml'
    return read_config(path) if os.path.lexists(path) else released()


def open_files(codec_dir: str | Path, stem: str = STEM) -> tuple[Path, FlowConfig, Tensors]:
    """(file, configuration, lazy tensors) of one checkpoint of a codec directory's decoder.

    Raises:
      InputError: as of `open_flow`.
    """
    config = open_config(codec_dir)
    path, weights = open_stem(Path(codec_dir) / 'flow', stem)
    table, shapes = flow_rules(), flow_network(config).shapes
    tensors = names.fitted(weights, rules.expected_tensors(table, shapes), str(path))
    rules.check(table, tensors.shapes, shapes, where=str(path), dtypes=tensors.dtypes)
    return path, config, tensors


def open_flow(codec_dir: str | Path, stem: str = STEM) -> tuple[FlowConfig, dict]:
    """Configuration and parameters (float32 numpy) of a codec directory's decoder.

    Args:
      stem: the checkpoint, `flow` (offline) or `flow-chunk-5` (streaming); `.safetensors` is
        preferred to `.pt`.

    Raises:
      InputError: no such file, or weights that do not fit the configuration.
    """
    _, config, tensors = open_files(codec_dir, stem)
    shapes = flow_network(config).shapes
    return config, rules.to_params(
        flow_rules(), lambda name: tensors.read(name).astype('float32'), shapes
    )


def save_flow(codec_dir: str | Path, config: FlowConfig, params: dict) -> None:
    """Writes `flow/config.yaml` and `flow/flow.safetensors` under upstream's tensor names.

    Raises:
      InputError: there is another file of settings than was written here, or the disk is full.
    """
    directory = Path(codec_dir) / 'flow'
    directory.mkdir(parents=True, exist_ok=True)
    plain_root(directory / 'config.yaml')
    # Weights never stand beside the settings of others: without them a directory is refused.
    (directory / 'flow.safetensors').unlink(missing_ok=True)
    write_config(directory / 'config.yaml', config)
    safetensors_io.write(directory / 'flow.safetensors', rules.to_tensors(flow_rules(), params))
