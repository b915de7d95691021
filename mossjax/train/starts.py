"""Where a run's first parameters come from: `init_from` of its config."""

from collections.abc import Callable
import functools
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from mossjax import checkpoint
from mossjax.convert import kinds
from mossjax.convert.directories import check_params, read_json
from mossjax.convert.placement import on_devices, place
from mossjax.convert.qwen3 import open_qwen3
from mossjax.errors import InputError
from mossjax.models.lm.config import LMConfig
from mossjax.nn.lora import AdaptedNetwork
from mossjax.nn.param import Network
from mossjax.train.task import Task

Start = Callable[[dict], dict]  # the parameters' abstract tree -> parameters


class Run(NamedTuple):
    """What `train.loop.fit` needs beside config and workdir; no start means fresh parameters."""

    task: Task
    init_from: Start | None


def from_workdir(workdir: str) -> Start | None:
    """Parameters of the last checkpoint of another run; fresh ones for ''."""
    if not workdir:
        return None
    saved = checkpoint.as_path(workdir) / 'checkpoints'
    return lambda abstract: checkpoint.restore_params(saved, abstract)[0]


def language_model(directory: str, config: LMConfig, network: Network, seed: int) -> Start | None:
    """From the workdir of another run, a MOSS-Speech directory (either form) or a Qwen3 directory.

    A Qwen3 text model gives trunk and text branch; the speech branch starts as a copy.

    Raises:
      InputError: the directory is none of these (when asked, not when the run starts).
    """
    if not directory:
        return None
    path = checkpoint.as_path(directory)
    if (path / 'checkpoints').is_dir():
        return from_workdir(directory)
    kind = read_json(path / 'config.json').get('model_type')
    if kind == 'qwen3':
        key = jax.random.fold_in(jax.random.key(seed), 2**31)
        return lambda _: open_qwen3(path, config, key)
    if kind == 'moss_speech':
        return functools.partial(_moss_speech, path, network)
    raise InputError(
        f'{path}/config.json is of model_type {kind!r}; init_from takes the workdir of a run, a '
        'MOSS-Speech directory or a Qwen3 directory'
    )


def _moss_speech(path: Path, network: Network, abstract: dict) -> dict:
    source = kinds.open_source(path)
    check_params(source.kind.network.shapes, network.shapes)
    return place(
        source.kind.rules, source.tensors, network.shapes, on_devices(abstract, np.float32)
    )


def adapters(directory: str, config: LMConfig, network: AdaptedNetwork, seed: int) -> Start:
    """Weights as `language_model` finds them, and fresh adapters on them.

    Raises:
      InputError: no directory is given: there would be nothing to adapt.
    """
    if not directory:
        raise InputError(
            'config.model.lora adapts weights that are there; name them in config.init_from'
        )
    base = language_model(directory, config, network.inner, seed)
    key = jax.random.fold_in(jax.random.key(seed), 2**31 + 1)
    return lambda abstract: {
        'base': base(abstract['base']), 'lora': network.init_adapters(key)
    }  # fmt: skip
