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

from mossjax import checkpoint
from mossjax.convert import rules as rules_lib
from mossjax.convert import safetensors_io
from mossjax.convert.directories import new_directory
from mossjax.convert.lm_rules import LM_RULES
from mossjax.convert.rules import Rule
from mossjax.errors import InputError
from mossjax.files import read_json
from mossjax.nn.lora import Lora

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
PREFIX = 'base_model.model.'
# Settings of PEFT that change what an adapter computes, and the one value we implement.
HONOURED = {
    'peft_type': 'LORA', 'bias': 'none', 'use_dora': False, 'use_rslora': False,
    'fan_in_fan_out': False, 'rank_pattern': {}, 'alpha_pattern': {}, 'modules_to_save': None,
}  # fmt: skip


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
    def stored(cls, directory: Path, step: int, settings: Mapping) -> Adapters:
        """Those of an Orbax checkpoint, with the settings of its meta item."""
        lora = Lora(**{**settings, 'targets': tuple(settings['targets'])})
        shapes = rules_lib.flatten(checkpoint.read_shapes(directory, step))
        names = [path for path in shapes if path.startswith('lora/')]
        with checkpoint.array_errors(directory):
            flat = {
                name.removeprefix('lora/'):
                    checkpoint.open_array(directory, name, step)[...].read().result()
                for name in names
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
    """Tensors with adapters worked in, one at a time; interface of `safetensors_io.TensorFile`."""

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
        **HONOURED, 'task_type': 'CAUSAL_LM', 'base_model_name_or_path': base, 'r': lora.rank,
        'lora_alpha': lora.alpha, 'lora_dropout': 0.0, 'target_modules': modules,
        'inference_mode': True,
    }  # fmt: skip
    with new_directory(directory) as folder:
        safetensors_io.write(folder / WEIGHTS, tensors)
        (folder / CONFIG).write_text(json.dumps(content, indent=2) + '\n')


def load(directory: str | Path, shapes: Mapping) -> Adapters:
    """Reads a PEFT directory for a model of these parameter shapes (`Network.shapes`).

    Raises:
      InputError: a file is missing or damaged, a setting is one we do not implement, or adapters
        do not fit the model; a stack of which only some layers are adapted is refused too.
    """
    directory = Path(directory)
    content = read_json(directory / CONFIG)
    for key, only in HONOURED.items():
        if (content.get(key) or only) != only:
            raise InputError(
                f'{directory / CONFIG}: {key} is {content[key]!r}, only {only!r} is implemented'
            )
    if not isinstance(content.get('r'), int) or not isinstance(
        content.get('lora_alpha'), int | float
    ):
        raise InputError(
            f'{directory / CONFIG} has no rank "r" or no "lora_alpha"; give a LoRA adapter'
        )
    file = safetensors_io.TensorFile(_weights(directory))
    flat_shapes, flat, used = rules_lib.flatten(shapes), {}, set()
    for rule in LM_RULES:
        shape = tuple(flat_shapes[rule.path].shape)
        pairs, missing = [], []
        for layer in np.ndindex(shape[: rule.depth]):
            module = PREFIX + rule.tensor(layer).removesuffix('.weight')
            names = [f'{module}.lora_{part}.weight' for part in 'AB']
            (pairs if all(n in file.shapes for n in names) else missing).append(names)
        if not pairs:
            continue
        if missing:
            raise InputError(
                f'{directory}: {missing[0][0]} is missing; either all layers of a stack are '
                'adapted or none'
            )
        used |= {name for names in pairs for name in names}
        flat |= _stacked(rule, shape, content['r'], pairs, file, directory)
    if stray := sorted(set(file.shapes) - used):
        raise InputError(
            f'{directory}: {len(stray)} adapters do not belong to this model, e.g. {stray[0]}'
        )
    adapters = Adapters(Lora(content['r'], float(content['lora_alpha']), ('x',)), flat)
    lora = dataclasses.replace(adapters.lora, targets=tuple(adapters.targets))
    return dataclasses.replace(adapters, lora=lora)


def _stacked(rule: Rule, shape, rank: int, pairs, file, directory) -> dict[str, np.ndarray]:
    """down and up of one parameter from its modules."""
    source = rule.op.source_shape(shape[rule.depth :])
    downs, ups = [], []
    for name_a, name_b in pairs:
        for name, want in ((name_a, (rank, source[1])), (name_b, (source[0], rank))):
            if file.shapes[name] != want:
                raise InputError(
                    f'{directory}: {name} is {file.shapes[name]}, this model wants {want}'
                )
        downs.append(file.read(name_a).astype(np.float32).T)
        ups.append(file.read(name_b).astype(np.float32).T)
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


def _weights(directory: Path) -> Path:
    path = directory / WEIGHTS
    if not path.is_file():
        raise InputError(f'{path}: no such file. Give the directory of an adapter in safetensors.')
    return path
