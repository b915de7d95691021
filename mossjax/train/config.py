"""The schema of a training run: one ConfigDict for every network, unknown keys refused.

An experiment file is Python with a function `get_config()` that starts from `defaults()` and
changes what it needs; `--config.optim.peak_lr=1e-4` changes it further.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import difflib
from typing import Any

import ml_collections

from mossjax.errors import InputError
from mossjax.parallel.mesh import MeshConfig
from mossjax.train.optim import OptimConfig

# Sections whose keys belong to the task: its factory checks them.
OPEN = ('model', 'data', 'loss')


def defaults() -> ml_collections.ConfigDict:
    """Every key a run has.

    task: 'lm', 'tokenizer' or 'flow'. model, data, loss: what that task's factory reads, see
    `train.tasks`. init_from: directory to take parameters from, '' for fresh ones. steps: updates
    in all. log_every, save_every: steps between. keep: checkpoints kept. compute_dtype: of the
    network inside a step; parameters and optimiser stay float32. rules: a name in
    `parallel.rules.PRESETS`. mesh: `parallel.mesh.MeshConfig`. optim: `train.optim.OptimConfig`.
    """
    config = ml_collections.ConfigDict()
    config.task = 'lm'
    config.seed = 0
    config.steps = 1000
    config.log_every = 20
    config.save_every = 500
    config.keep = 2
    config.init_from = ''
    config.compute_dtype = 'float32'
    config.rules = 'fsdp'
    config.mesh = ml_collections.ConfigDict(dataclasses.asdict(MeshConfig()))
    config.optim = ml_collections.ConfigDict(dataclasses.asdict(OptimConfig()))
    for name in OPEN:
        config[name] = ml_collections.ConfigDict()
    return config


def check(config: Mapping) -> None:
    """Every key outside the open sections is one of `defaults`, every value of its type.

    Raises:
      InputError: naming the key and the nearest one that exists.
    """
    known = defaults()
    _check_section(config, known, '')
    for section in ('mesh', 'optim'):
        _check_section(config[section], known[section], f'{section}.')
    for name in ('steps', 'log_every', 'save_every', 'keep'):
        if config[name] < 1:
            raise InputError(f'config.{name} is {config[name]}; it must be at least 1')
    dtype = config['compute_dtype']
    if dtype not in ('float32', 'bfloat16'):
        raise InputError(f"config.compute_dtype is {dtype!r}; use 'float32' or 'bfloat16'")


def refuse_unknown(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """
    Raises:
      InputError: a key in `given` is not in `known`; says which is near.
    """
    known = list(known)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f'did you mean {near[0]}?' if near else f'known: {", ".join(known)}'
            raise InputError(f'config key {where}{key} is not known; {hint}')


def options(section: Mapping, kind: type, where: str) -> Any:
    """A section of the config as the dataclass that reads it.

    Raises:
      InputError: a key the dataclass lacks, or one it needs is absent.
    """
    fields = dataclasses.fields(kind)
    refuse_unknown(section, [f.name for f in fields], f'{where}.')
    empty = dataclasses.MISSING
    absent = [f.name for f in fields
              if f.default is empty and f.default_factory is empty and f.name not in section]
    if absent:
        raise InputError(f'config.{where} lacks {", ".join(absent)}; set it in the experiment file')
    plain = section.to_dict() if hasattr(section, 'to_dict') else dict(section)
    return kind(**plain)


def _check_section(given: Mapping, known: Mapping, where: str) -> None:
    refuse_unknown(given, known, where)
    missing = [key for key in known if key not in given]
    if missing:
        raise InputError(f'config lacks {where}{missing[0]}; start it from train.config.defaults()')
    for key, value in given.items():
        want = type(known[key])
        if want is ml_collections.ConfigDict and isinstance(value, Mapping):
            continue  # a plain dict will do
        number = want is float and isinstance(value, int) and not isinstance(value, bool)
        boolean = isinstance(value, bool) and want is not bool
        if not number and (boolean or not isinstance(value, want)):
            raise InputError(
                f'config.{where}{key} is {value!r}; it must be of type {want.__name__}'
            )
