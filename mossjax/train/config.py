"""The schema of a training run: one ConfigDict for every network, unknown keys refused.

An experiment file is Python with a function `get_config()` that starts from `defaults()` and
changes what it needs; `--config.optim.peak_lr=1e-4` changes it further. Dataclasses say what may be
set: their fields name the keys, with type, default and the range of numbers (`values.ranged`).
"""

from collections.abc import Iterable, Mapping
import dataclasses
import difflib
import json
import typing
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict, config_dict

from mossjax import paths, values
from mossjax.errors import InputError
from mossjax.parallel.mesh import MeshConfig
from mossjax.train.optim import OptimConfig
from mossjax.values import (
    COUNT,
    LARGEST,
    NOT_NEGATIVE,
    NUMBER,
    SEED,
    SHARE,
    SIZE,
    Range,
    ranged,
)  # fmt: skip

MAPPINGS = Mapping | ConfigDict  # a ConfigDict is none by itself
# Sections whose keys belong to the task: its factory checks them.
OPEN = ('model', 'data', 'loss')
# Keys, and sections of them, that may change when a run goes on: they say how far it goes, how it
# is watched and on what it runs. All others say what the run is.
FREE = (
    'steps', 'log_every', 'save_every', 'keep', 'milestone_every', 'init_from', 'max_skips',
    'max_skip_share', 'accumulate', 'stall_after', 'compilation_cache', 'rules', 'mesh',
    'held_out_every', 'profile_from', 'profile_steps', 'peak_flops', 'model.attention',
    'model.remat', 'loss.chunk', 'data.held_out', 'data.held_out_rows', 'data.skip_rows',
    'data.corrupt', 'data.keep',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Every key a run has.

    Attributes:
      task: 'lm', 'tokenizer', 'flow', 'vocoder' or 'speaker'.
      seed: of fresh parameters, of the order of the data, and of every step's random key.
      steps: of the run in all. log_every, save_every: steps between.
      keep: last checkpoints kept. milestone_every: steps between checkpoints that are kept for
        good beside them, 0 for none.
      init_from: directory to take parameters from, '' for fresh ones.
      compute_dtype: of the network inside a step; parameters and optimiser stay float32.
      accumulate: parts that a batch is taken in, one after another, where it does not fit memory at
        once; the update is the same, in float32 (language model).
      max_skips: steps in a row without a finite loss and gradient that end the run. Each of them
        is skipped: its batch changes nothing. max_skip_share: of all steps so far, from max_skips
        on, that ends it too.
      stall_after: seconds without a finished step after which the process prints where its
        threads are and ends, to be started again; longer than a compilation takes; 0 for never.
      held_out_every: steps between evaluations on rows that are held out, 0 for none.
      profile_from, profile_steps: the first step, and how many, that are recorded for XProf.
      peak_flops: operations a second of one chip, for the utilisation that is logged; 0 for what
        is known of the chip.
      compilation_cache: folder, local or gs://, in which compiled programs are kept, '' for none.
      rules: a name in `parallel.rules.PRESETS`. mesh: `parallel.mesh.MeshConfig`.
      optim: `train.optim.OptimConfig`.
      model, data, loss: what the task's factory reads, see `train.tasks`.
    """

    task: str = 'lm'
    seed: int = ranged(SEED, 0)
    steps: int = ranged(SIZE, 1000)
    log_every: int = ranged(SIZE, 20)
    save_every: int = ranged(SIZE, 500)
    keep: int = ranged(SIZE, 2)
    milestone_every: int = ranged(COUNT, 0)
    init_from: str = ''
    compute_dtype: str = 'float32'
    accumulate: int = ranged(SIZE, 1)
    max_skips: int = ranged(SIZE, 5)
    max_skip_share: float = ranged(SHARE, 0.01)
    held_out_every: int = ranged(COUNT, 0)
    profile_from: int = ranged(COUNT, 0)
    profile_steps: int = ranged(COUNT, 0)
    peak_flops: float = ranged(NOT_NEGATIVE, 0.0)
    stall_after: float = ranged(NOT_NEGATIVE, 3600.0)
    compilation_cache: str = ''
    rules: str = 'fsdp'
    mesh: MeshConfig = MeshConfig()
    optim: OptimConfig = OptimConfig()
    model: Mapping = dataclasses.field(default_factory=dict)
    data: Mapping = dataclasses.field(default_factory=dict)
    loss: Mapping = dataclasses.field(default_factory=dict)


def defaults() -> ConfigDict:
    """Every key of `RunConfig`; the sections of the task are empty."""
    return ConfigDict(dataclasses.asdict(RunConfig()))


def check(config: Mapping) -> None:
    """Every key outside the open sections is one of `defaults`, every value of its type and range.

    Raises:
      InputError: naming the key and the nearest one that exists.
    """
    _check_fields(config, RunConfig, '')
    for where, kind in (('', RunConfig), ('mesh', MeshConfig), ('optim', OptimConfig)):
        section = config[where] if where else config
        missing = [f.name for f in dataclasses.fields(kind) if f.name not in section]
        if missing:
            name = f'{where}.{missing[0]}'.lstrip('.')
            raise InputError(f'config lacks {name}; start it from train.config.defaults()')
    dtype = config['compute_dtype']
    if dtype not in ('float32', 'bfloat16'):
        raise InputError(f"config.compute_dtype is {dtype!r}; use 'float32' or 'bfloat16'")


def complete(config: ConfigDict, sections: Mapping[str, type]) -> None:
    """Puts every documented key that a config does not set into its open sections.

    A key gets its default. One without, and the keys of a group that is off unless set, get a
    placeholder of their type, which reads as None and counts as absent.

    Args:
      sections: name -> dataclass of its keys.
    """
    for name, kind in sections.items():
        if isinstance(config.get(name), ConfigDict):  # else `check` says so
            _fill(config[name], kind, off=False)


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
    """A section of the config as the dataclass that reads it; keys set to None count as absent.

    Raises:
      InputError: a key the dataclass lacks, one it needs is absent, or a value is of another type
        or out of its range.
    """
    plain = _set(section)
    _check_fields(plain, kind, f'{where}.')
    empty = dataclasses.MISSING
    absent = [f.name for f in dataclasses.fields(kind)
              if f.default is empty and f.default_factory is empty and f.name not in plain]
    if absent:
        raise InputError(f'config.{where} lacks {", ".join(absent)}; set it in the experiment file')
    for field in dataclasses.fields(kind):
        if field.metadata.get('path') and field.name in plain:
            plain[field.name] = expand(plain[field.name], f'config.{where}.{field.name}')
    return kind(**plain)


def expand(value: Any, name: str) -> Any:
    """A path of a config, or each of a mapping, by the rule for all paths; '' is none.

    Raises:
      InputError: it is of no known kind, or in a bucket that cannot be reached from here.
    """
    if isinstance(value, Mapping):
        return {key: expand(each, f'{name}.{key}') for key, each in value.items()}
    if value:
        value = paths.expand(value, name)
        paths.need_buckets(value, name)
    return value


def choose(table: Mapping[str, Any], name: str, where: str) -> Any:
    """The entry of a table that `config.where` names.

    Raises:
      InputError: there is none; says which there are.
    """
    if name not in table:
        raise InputError(f'config.{where} is {name!r}; choose one of {", ".join(table)}')
    return table[name]


def changes(before: Mapping, now: Mapping) -> dict[str, str]:
    """{'optim.peak_lr': '0.001 -> 0.0005', ...}: what differs between two configs.

    Args:
      before: as a checkpoint stores it, in the types of JSON. now: a plain nested dict.
    """
    old, new = (
        {key: value for key, value in traverse_util.flatten_dict(tree, sep='.').items()
         if value is not None} for tree in (before, json.loads(json.dumps(now)))
    )  # fmt: skip
    return {
        key: f'{values.shown(old[key]) if key in old else "(not set)"} -> '
        f'{values.shown(new[key]) if key in new else "(not set)"}'
        for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)
    }


def is_free(key: str) -> bool:
    """Whether a run may go on with another value of this key, see FREE."""
    return any(key == name or key.startswith(f'{name}.') for name in FREE)


def path(**more: Any) -> Any:
    """A field that names a file or folder, or a mapping whose values do."""
    return dataclasses.field(metadata={'path': True}, **more)


def group(kind: type) -> Any:
    """A field for a mapping with the keys of a dataclass, {} where that is off."""
    return dataclasses.field(default_factory=dict, metadata={'keys': kind})


def open_key(section: ConfigDict, name: str, annotation: Any) -> None:
    """Lets the command line read a value for a key by its annotated type.

    An absent key gets a placeholder, which reads as None; a whole number where any may stand
    becomes a float, a list a tuple.
    """
    kind = _abstract(typing.get_origin(annotation) or annotation)
    with section.unlocked():
        if name not in section:
            kind = {Mapping: ConfigDict, list: tuple}.get(kind, kind)
            section[name] = config_dict.placeholder(kind)
        elif (value := section[name]) is None:
            return
        elif kind is float and type(value) is int and abs(value) <= LARGEST:
            del section[name]
            section[name] = float(value)
        elif kind in (list, tuple) and isinstance(value, list):
            del section[name]
            section[name] = tuple(value)


def _set(section: Mapping) -> dict:
    """A plain dict of what is set."""
    return {
        key: _set(value) if isinstance(value, MAPPINGS) else value
        for key, value in section.items() if value is not None
    }  # fmt: skip


def _fill(section: ConfigDict, kind: type, off: bool) -> None:
    for field in dataclasses.fields(kind):
        factory = field.default_factory
        if field.name in section or off or field.default is factory:  # both are MISSING
            open_key(section, field.name, field.type)
        else:
            with section.unlocked():
                given = factory is not dataclasses.MISSING
                section[field.name] = ConfigDict(factory()) if given else field.default
        inner = field.metadata.get('keys')
        if inner and isinstance(section[field.name], ConfigDict):
            _fill(section[field.name], inner, off=True)


def _check_fields(given: Mapping, kind: type, where: str) -> None:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    refuse_unknown(given, fields, where)
    for name, value in given.items():
        field = fields[name]
        _check_value(value, field.type, values.range_of(field), f'{where}{name}')


def _check_value(value: Any, annotation: Any, accepted: Range | None, where: str) -> None:
    kind = _abstract(typing.get_origin(annotation) or annotation)
    section = dataclasses.is_dataclass(kind)
    if not _is_of(value, MAPPINGS if section or kind is Mapping else kind):
        name = 'ConfigDict' if section or kind is Mapping else kind.__name__
        raise InputError(f'config.{where} is {values.shown(value)}; it must be of type {name}')
    if section:
        _check_fields(value, kind, f'{where}.')
    if kind in (int, float):
        accepted = accepted or (NUMBER if kind is float else _WHOLE)
        values.number(value, f'config.{where}', accepted)
    inside = [a for a in typing.get_args(annotation) if a is not ...]
    if kind is Mapping and inside:
        for key, each in value.items():
            _check_value(each, inside[1], accepted, f'{where}.{key}')
    elif kind in (tuple, list) and inside:
        for i, each in enumerate(value):
            _check_value(each, inside[0], accepted, f'{where}[{i}]')


_WHOLE = Range(-LARGEST, LARGEST, whole=True)


def _is_of(value: Any, kind: type) -> bool:
    wider = {float: (int, float), tuple: (tuple, list), list: (tuple, list)}.get(kind, kind)
    return isinstance(value, wider) and (kind is bool or not isinstance(value, bool))


def _abstract(kind: Any) -> type:
    return Mapping if isinstance(kind, type) and issubclass(kind, Mapping) else kind
