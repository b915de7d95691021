"""LoRA adapters: worked into the weights, and in the layout of Hugging Face's PEFT.

A PEFT directory holds adapter_config.json (rank, alpha, the modules that are adapted) and
adapter_model.safetensors, per module lora_A (rank, in) and lora_B (out, rank), so that
W + alpha / rank * B A is the adapted weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
from pathlib import Path

import numpy as np

from mossjax import checkpoint, values
from mossjax.convert import peft_config, safetensors_io
from mossjax.convert import rules as rules_lib
from mossjax.convert.directories import new_directory
from mossjax.convert.lm_rules import LM_RULES
from mossjax.convert.peft_config import AdapterConfig
from mossjax.convert.rules import MERGE_HEADS, SPLIT_HEADS, TRANSPOSE, Rule
from mossjax.convert.weight_files import Tensors, open_tensors
from mossjax.errors import InputError
from mossjax.models.lm.matrices import matrix
from mossjax.nn.lora import Lora, adapt
from mossjax.nn.param import Network
from mossjax.parallel.sharding import check_shapes

STEM = 'adapter_model'
CONFIG, WEIGHTS = 'adapter_config.json', f'{STEM}.safetensors'
PREFIX = 'base_model.model.'
# What we write beside rank, alpha and modules: plain LoRA.
PLAIN = {
    'peft_type': 'LORA', 'bias': 'none', 'use_dora': False, 'use_rslora': False,
    'fan_in_fan_out': False, 'rank_pattern': {}, 'alpha_pattern': {}, 'modules_to_save': None,
}  # fmt: skip
LINEAR = (TRANSPOSE, SPLIT_HEADS, MERGE_HEADS)  # the layouts of linear maps


@dataclasses.dataclass(frozen=True, eq=False)
class Adapters:
    """Adapters and their settings.

    Attributes:
      lora: the settings.
      flat: {'trunk/attn/q/down': array, ...}, float32 numpy; see `nn.lora.Adapted` for shapes.
    """

    lora: Lora
    flat: Mapping[str, np.ndarray]

    @classmethod
    def stored(
        cls, directory: Path, step: int, settings: Mapping, network: Network
    ) -> Adapters:
        """Those of an Orbax checkpoint, with the settings of its meta item.

        Raises:
          InputError: they do not fit the network, or the settings are none.
        """
        where = f'{directory}, step {step}'
        targets = settings.get('targets') if isinstance(settings, Mapping) else None
        good = isinstance(targets, list) and all(isinstance(name, str) for name in targets)
        if not good or set(settings) != {field.name for field in dataclasses.fields(Lora)}:
            raise InputError(f'{where}: "lora" in its meta item is damaged; copy it again')
        lora = Lora(**{**settings, 'targets': tuple(targets)})
        shapes = {
            path.removeprefix('lora/'): x
            for path, x in rules_lib.flatten(checkpoint.read_shapes(directory, step)).items()
            if path.startswith('lora/')
        }
        wanted = adapt(network, lora, matrix).shapes['lora']
        check_shapes(rules_lib.unflatten(shapes), wanted, f'{where}: its adapters')
        with checkpoint.array_errors(directory):
            flat = {
                name: checkpoint.open_array(directory, f'lora/{name}', step)[...].read().result()
                for name in shapes
            }
        return cls(lora, flat)

    @property
    def targets(self) -> list[str]:
        """Paths of the adapted parameters."""
        return sorted({path.rpartition('/')[0] for path in self.flat})

    def tree(self) -> dict:
        """As nested dict, what `nn.lora.attach` takes."""
        return rules_lib.unflatten(self.flat)

    def pair(self, path: str, layer: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """(A (r, in), B (out, r)) of one module."""
        down, up = (self.flat[f'{path}/{part}'][layer] for part in ('down', 'up'))
        rank = up.shape[0]
        return down.reshape(-1, rank).T, up.reshape(rank, -1).T


@dataclasses.dataclass(frozen=True, eq=False)
class Merged:
    """Tensors with adapters worked in, one at a time; interface of `weight_files.Tensors`."""

    tensors: object
    rules: Sequence[Rule]
    adapters: Adapters

    def __post_init__(self):
        place = {
            rule.tensor(layer): (rule, layer)
            for rule in self.rules
            if rule.path in self.adapters.targets
            for layer in np.ndindex(self.adapters.flat[f'{rule.path}/up'].shape[: rule.depth])
        }
        object.__setattr__(self, '_place', place)

    @property
    def shapes(self) -> Mapping:
        return self.tensors.shapes

    @property
    def dtypes(self) -> Mapping:
        return self.tensors.dtypes

    def read(self, name: str) -> np.ndarray:
        tensor = self.tensors.read(name)
        if name not in self._place:
            return tensor
        rule, layer = self._place[name]
        a, b = self.adapters.pair(rule.path, layer)
        delta = self.adapters.lora.scale * (b @ a)
        return (tensor.astype(np.float32) + delta).astype(tensor.dtype)


def save(
    directory: str | Path, adapters: Adapters, rename: Callable = lambda name: name, base: str = ''
) -> None:
    """Writes a PEFT directory, whole or not at all.

    Args:
      rename: checkpoint name of a weight -> its name in the model that is adapted, None to leave
        it out (the speech side, for a text model).
      base: name or path of that model, for the record.

    Raises:
      InputError: the directory is not empty, or nothing is left to write.
    """
    tensors, modules = {}, []
    for rule in LM_RULES:
        if rule.path not in adapters.targets:
            continue
        stacked = adapters.flat[f'{rule.path}/up'].shape[: rule.depth]
        for layer in np.ndindex(stacked):
            name = rename(rule.tensor(layer))
            if name is None:
                continue
            module = name.removesuffix('.weight')
            modules.append(module)
            for part, array in zip('AB', adapters.pair(rule.path, layer), strict=True):
                tensors[f'{PREFIX}{module}.lora_{part}.weight'] = np.ascontiguousarray(array)
    if not tensors:
        raise InputError('no adapter belongs to this model; write the whole one')
    lora = adapters.lora
    content = {
        **PLAIN, 'task_type': 'CAUSAL_LM', 'base_model_name_or_path': base, 'r': lora.rank,
        'lora_alpha': lora.alpha, 'lora_dropout': 0.0, 'target_modules': modules,
        'inference_mode': True,
    }  # fmt: skip
    with new_directory(directory) as folder:
        safetensors_io.write(folder / WEIGHTS, tensors)
        (folder / CONFIG).write_text(json.dumps(content, indent=2) + '\n')


def load(directory: str | Path, shapes: Mapping) -> Adapters:
    """Reads a PEFT directory for a model of these parameter shapes (`Network.shapes`).

    Where modules have ranks or scales of their own, all get the largest rank, and the scales are
    worked into B; layers of a stack that are not adapted get zeros.

    Raises:
      InputError: a file is missing or damaged, a setting is one that is not computed (see
        `peft_config`), or settings, weights and model do not fit together.
    """
    directory = Path(directory)
    config, file = peft_config.read(directory / CONFIG), open_tensors(directory, STEM)
    flat_shapes, used = rules_lib.flatten(shapes), set()
    stacks: dict[Rule, dict[tuple[int, ...], str]] = {}
    for rule in LM_RULES:
        if rule.op not in LINEAR:
            continue
        for layer in np.ndindex(tuple(flat_shapes[rule.path].shape)[: rule.depth]):
            module = rule.tensor(layer).removesuffix('.weight')
            if any(name in file.shapes for name in _tensors(module)):
                stacks.setdefault(rule, {})[layer] = module
                used |= set(_tensors(module))
            elif config.adapts(module):
                used |= set(_tensors(module))
    _check_names(directory, config, file.shapes, used)
    modules = [module for stack in stacks.values() for module in stack.values()]
    if unasked := [module for module in modules if not config.adapts(module)]:
        raise InputError(
            f'{directory}: {WEIGHTS} has adapters of {values.listed(unasked, 2)}, which '
            f'target_modules in {CONFIG} leaves out; take both files from one download'
        )
    for rule, stack in stacks.items():
        source = rule.op.source_shape(tuple(flat_shapes[rule.path].shape)[rule.depth :])
        for module in stack.values():
            _check_shapes(directory, file, module, config.rank(module), source)
    rank = max(config.rank(module) for module in modules)
    scales = {config.scale(module) for module in modules}
    scale = scales.pop() if len(scales) == 1 else 1.0
    flat = {}
    for rule, stack in stacks.items():
        shape = tuple(flat_shapes[rule.path].shape)
        flat |= _stacked(rule, shape, rank, stack, _Reader(config, file, scale))
    adapters = Adapters(Lora(rank, scale * rank, ('x',)), flat)
    lora = dataclasses.replace(adapters.lora, targets=tuple(adapters.targets))
    return dataclasses.replace(adapters, lora=lora)


def _tensors(module: str) -> list[str]:
    """Names of A and B of a module."""
    return [f'{PREFIX}{module}.lora_{part}.weight' for part in 'AB']


def _check_names(directory: Path, config: AdapterConfig, found: Mapping, wanted: set[str]) -> None:
    """Raises InputError unless the tensors are those of the modules that are to be adapted."""
    stray, missing = sorted(set(found) - wanted), sorted(wanted - set(found))
    if stray or not found:
        raise InputError(
            f'{directory}: {len(stray)} tensors do not belong to adapters of this model, e.g. '
            f'{values.listed(stray, 2) or "none at all"}; expected are names such as '
            f'{_tensors("model.shared_block.layers.0.self_attn.q_proj")[0]}. Give an adapter of '
            f'this model; another kind than plain LoRA: {peft_config.MERGE}'
        )
    if missing:
        raise InputError(
            f'{directory}: {values.listed(missing, 2)} missing, though target_modules in {CONFIG} '
            f'(rank {config.r}) asks for them; take both files from one download'
        )


def _check_shapes(
    directory: Path, file: Tensors, module: str, rank: int, source: tuple[int, int]
) -> None:
    """Raises InputError unless A is (rank, in) and B (out, rank) of a weight (out, in)."""
    wanted = (rank, source[1]), (source[0], rank)
    for name, want in zip(_tensors(module), wanted, strict=True):
        if file.shapes[name] != want or file.dtypes[name].kind not in 'fV':
            raise InputError(
                f'{directory}: {name} is {file.shapes[name]} of {file.dtypes[name]}, this model '
                f'wants {want} of floats'
            )


@dataclasses.dataclass(frozen=True)
class _Reader:
    """A and B of modules as float32, B times what its scale differs from the common one."""

    config: AdapterConfig
    file: Tensors
    scale: float

    def pair(self, module: str, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """(A^T (in, rank), B^T (rank, out)) of a module, filled up with zeros."""
        a, b = (self.file.read(name).astype(np.float32).T for name in _tensors(module))
        b = b * np.float32(self.config.scale(module) / self.scale)
        empty = rank - self.config.rank(module)
        return np.pad(a, ((0, 0), (0, empty))), np.pad(b, ((0, empty), (0, 0)))


def _stacked(
    rule: Rule, shape: tuple[int, ...], rank: int, stack: Mapping, reader: _Reader
) -> dict[str, np.ndarray]:
    """down and up of one parameter from its modules {layer: name}."""
    source = rule.op.source_shape(shape[rule.depth :])
    none = np.zeros((source[1], rank), np.float32), np.zeros((rank, source[0]), np.float32)
    pairs = [
        reader.pair(stack[layer], rank) if layer in stack else none
        for layer in np.ndindex(shape[: rule.depth])
    ]
    downs, ups = zip(*pairs, strict=True)
    inputs = _inputs(rule, shape)
    lead, rest = shape[: rule.depth], shape[rule.depth :]
    return {
        f'{rule.path}/down': np.stack(downs).reshape(*lead, *rest[:inputs], rank),
        f'{rule.path}/up': np.stack(ups).reshape(*lead, rank, *rest[inputs:]),
    }


def _inputs(rule: Rule, shape) -> int:
    """How many axes of a parameter (layers not counted) are inputs of its linear map."""
    rest, wanted = shape[rule.depth :], rule.op.source_shape(shape[rule.depth :])[1]
    return next(i for i in range(1, len(rest)) if int(np.prod(rest[:i])) == wanted)
