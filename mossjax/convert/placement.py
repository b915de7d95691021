"""Opening the language model's weights, from either form, straight to where they are wanted.

Each parameter is a `View`: nothing is read until it is sliced, and then only the slice. `put` says
what becomes of it: a numpy array (`on_host`), or an array on a mesh of which every process reads
the shards of its own devices only (`on_devices`).
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from mossjax.convert import kinds, rules
from mossjax.convert.orbax_tensors import OrbaxTensors
from mossjax.convert.rules import Rule
from mossjax.convert.source import LANGUAGE_MODEL, ORBAX
from mossjax.convert.weight_files import Tensors
from mossjax.errors import InputError
from mossjax.models.lm.config import LMConfig


class View(Protocol):
    """One parameter, read by slicing: `view[...]`, `view[0:4, :, 8:16]`."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, index) -> np.ndarray: ...


Put = Callable[[str, View], Any]  # (slash-joined path, view) -> leaf


def open_lm(directory: str | Path, put: Put | None = None) -> tuple[LMConfig, dict]:
    """Reads a language model directory, Hugging Face or Orbax.

    Args:
      directory: as downloaded, or as written by `save_lm` or `mossjax convert`.
      put: makes a leaf of each parameter; `on_host()` by default.

    Returns:
      (config, parameters as a nested dict).

    Raises:
      InputError: a file is missing or damaged, it is another kind of model, or weights and config
        do not fit; raised before any weight is read.
    """
    source = kinds.open_source(directory)
    if source.kind.name != LANGUAGE_MODEL or source.choices.get('start') == 'qwen3' and (
        source.becomes == ORBAX
    ):
        raise InputError(
            f'{directory} holds no MOSS-Speech language model ({source.kind.name}); a Qwen3 model '
            'becomes the start of one by: mossjax convert'
        )
    config = source.kind.config
    return config, place(source.kind.rules, source.tensors, source.kind.network.shapes, put)


def place(
    table: Sequence[Rule], tensors: Tensors, shapes: Mapping, put: Put | None = None
) -> dict:
    """The parameter dict of checked tensors, leaf by leaf."""
    put = put or on_host()
    flat = rules.flatten(shapes)
    return rules.unflatten({
        rule.path: put(rule.path, view(rule, tensors, tuple(flat[rule.path].shape)))
        for rule in table
    })


def on_host(dtype=None) -> Put:
    """numpy arrays, in the stored dtype by default."""

    def put(path: str, param: View) -> np.ndarray:
        del path
        array = param[...]
        return array if dtype is None else array.astype(dtype)

    return put


def on_devices(placed: Mapping, dtype=None, read: Callable[[int], None] = lambda n: None) -> Put:
    """jax arrays, laid out as the leaves of `placed` (ShapeDtypeStructs with shardings) say.

    Args:
      dtype: of the arrays; the stored one by default.
      read: told the bytes of every slice this process takes from the files.
    """
    flat = rules.flatten(placed)

    def put(path: str, param: View) -> jax.Array:
        taken: dict = {}  # devices that hold the same slice share it

        def piece(index):
            key = str(index)
            if key not in taken:
                found = param[index]
                read(found.nbytes)
                taken[key] = found if dtype is None else found.astype(dtype)
            return taken[key]

        return jax.make_array_from_callback(param.shape, flat[path].sharding, piece)

    return put


# --------------------------------------------------------------------------------------- views


def view(rule: Rule, tensors: Tensors, shape: tuple[int, ...]) -> View:
    """The parameter of a rule, whichever form it is stored in."""
    if isinstance(tensors, OrbaxTensors):
        return tensors.view(rule)
    return _Gathered(rule, tensors, shape)


@dataclasses.dataclass(frozen=True)
class _Gathered:
    """A parameter whose layers are tensors of a Hugging Face checkpoint."""

    rule: Rule
    tensors: Tensors
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.tensors.dtypes[self.rule.tensor((0,) * self.rule.depth)])

    def __getitem__(self, index) -> np.ndarray:
        if index is Ellipsis:
            index = (slice(None),) * len(self.shape)
        depth = self.rule.depth
        layers, rest = index[:depth], tuple(index[depth:])
        chosen = [range(n)[part] for n, part in zip(self.shape, layers, strict=False)]
        grid = np.stack(np.meshgrid(*chosen, indexing='ij'), -1).reshape(-1, depth) if depth else [
            ()
        ]
        pieces = [self._layer(tuple(int(i) for i in layer))[rest] for layer in grid]
        if not depth:
            return np.ascontiguousarray(pieces[0])
        return np.stack(pieces).reshape(*map(len, chosen), *pieces[0].shape)

    def _layer(self, layer: tuple[int, ...]) -> np.ndarray:
        tensor = self.tensors.read(self.rule.tensor(layer))
        return self.rule.op.forward(tensor, self.shape[self.rule.depth :])
