"""An Orbax checkpoint seen through the tensor names of a Hugging Face one, one tensor at a time.

A stacked parameter of gigabytes is read and written layer by layer, so no more than one tensor is
ever in memory. What is written here is an ordinary Orbax checkpoint: `checkpoint` lays it out.
"""

from collections.abc import Mapping, Sequence
import math
from pathlib import Path

import numpy as np

from mossjax import checkpoint
from mossjax.convert import rules as rules_lib
from mossjax.convert.rules import Rule
from mossjax.errors import InputError

CHUNK_BYTES = 4 * 2**20  # of one file: what a host that needs a slice has to read around it
SLAB_BYTES = 256 * 2**20  # of a tensor in flight to the disk at a time


class OrbaxTensors:
    """The parameters of one step under checkpoint names, with the interface of `TensorFile`.

    Attributes:
      shapes, dtypes: {tensor name: tuple}, {tensor name: numpy dtype}, in the order of the rules.
    """

    def __init__(
        self, directory: str | Path, rules: Sequence[Rule], step: int | None = None,
        inside: str = '', beside: Mapping[str, tuple[str, str]] | None = None,
    ):
        """
        Args:
          inside: branch of the parameter tree that the rules speak of, e.g. 'base/'.
          beside: {path in the rules: (item, path in it)} of arrays that a run keeps outside its
            parameters; with it, parameters that no rule names are left alone.

        Raises:
          InputError: there is no checkpoint, or it has other parameters than the rules.
        """
        self.path = Path(directory)
        self.step = checkpoint.find_step(directory, step)
        self._place: dict[str, tuple[Rule, tuple[int, ...]]] = {}
        self._open: dict = {}
        self.shapes, self.dtypes = {}, {}
        self._inside, self._beside = inside, dict(beside or {})
        found = {
            path.removeprefix(inside): x for path, x in self._found('params').items()
            if path.startswith(inside)
        }
        for path, (item, name) in self._beside.items():
            if (extra := self._found(item).get(name)) is not None:
                found[path] = extra
        wanted = {rule.path for rule in rules}
        _check_names(wanted, wanted & set(found) if beside else set(found), self.path)
        for rule in rules:
            param = found[rule.path]
            for layer in np.ndindex(param.shape[: rule.depth]):
                name = rule.tensor(layer)
                self._place[name] = rule, layer
                self.shapes[name] = _source_shape(rule, tuple(param.shape), self.path)
                self.dtypes[name] = np.dtype(param.dtype)

    def _found(self, item: str) -> dict:
        try:
            return rules_lib.flatten(checkpoint.read_shapes(self.path, self.step, item))
        except (ValueError, KeyError, OSError) as error:
            raise InputError(
                f'{self.path}, step {self.step}: its item {item} cannot be read ({error}); copy '
                'the checkpoint again'
            ) from error

    def read(self, name: str) -> np.ndarray:
        """One tensor in the checkpoint's layout, perhaps a transposed view."""
        rule, layer = self._place[name]
        with checkpoint.array_errors(self.path):
            value = self._array(rule)[layer].read().result()
        return rule.op.inverse(value, self.shapes[name])

    def view(self, rule: Rule) -> 'ArrayView':
        """A whole parameter, to be sliced."""
        return ArrayView(self._array(rule), self.path)

    def write(self, name: str, tensor: np.ndarray) -> None:
        """Puts one tensor into its place, on disk when this returns."""
        rule, layer = self._place[name]
        array = self._array(rule)
        value = rule.op.forward(tensor, tuple(array.shape[rule.depth :]))
        with checkpoint.array_errors(self.path):
            for part in _slabs(value.shape, value.dtype.itemsize):
                array[layer][part].write(value[part]).result()

    def _array(self, rule: Rule):
        if rule.path not in self._open:
            item, path = self._beside.get(rule.path, ('params', self._inside + rule.path))
            self._open[rule.path] = checkpoint.open_array(self.path, path, self.step, item)
        return self._open[rule.path]


class ArrayView:
    """An array on disk: `shape`, `dtype`, and slices, which are read when they are taken."""

    def __init__(self, array, directory: Path):
        self._array, self._directory = array, directory
        self.shape, self.dtype = tuple(array.shape), array.dtype.numpy_dtype

    def __getitem__(self, index) -> np.ndarray:
        with checkpoint.array_errors(self._directory):
            return self._array[index].read().result()


def create(directory: Path, params: Mapping[str, np.ndarray], axes: Mapping, meta: dict) -> None:
    """A checkpoint of step 0 whose arrays exist with their shapes but hold nothing yet.

    Args:
      params: {path: anything with shape and dtype}. axes: {path: logical axes}, see `chunks`.
      meta: its JSON item.
    """
    shapes = {path: (tuple(x.shape), np.dtype(x.dtype)) for path, x in params.items()}
    pieces = {path: chunks(*shapes[path], axes[path]) for path in shapes}
    checkpoint.lay_out(directory, shapes, pieces, meta)


def chunks(
    shape: tuple[int, ...], dtype: np.dtype, axes: tuple[str | None, ...], limit: int = CHUNK_BYTES
) -> tuple[int, ...]:
    """Shape of the pieces an array is stored in: whole powers of two fit into it, so do shards.

    One layer at most; then the axis that every preset divides ('embed') is halved, then the
    largest, until a piece has `limit` bytes.
    """
    piece = [1 if name == 'layers' else n for n, name in zip(shape, axes, strict=True)]

    def halvable(i):
        return piece[i] % 2 == 0 and piece[i] > 1

    while math.prod(piece) * dtype.itemsize > limit:
        first = [i for i, name in enumerate(axes) if name == 'embed' and halvable(i)]
        if first and piece[first[0]] * 64 > shape[first[0]]:  # no mesh needs more than 64 parts
            piece[first[0]] //= 2
            continue
        rest = [i for i in range(len(piece)) if halvable(i)]
        if not rest:
            break
        piece[max(rest, key=lambda i: piece[i])] //= 2
    return tuple(piece)


def _slabs(shape: tuple[int, ...], itemsize: int):
    """Slices along the first axis of at most SLAB_BYTES."""
    if not shape:
        yield ()
        return
    rows = max(1, SLAB_BYTES // max(1, math.prod(shape[1:]) * itemsize))
    for start in range(0, shape[0], rows):
        yield (slice(start, min(start + rows, shape[0])),)


def _source_shape(rule: Rule, shape: tuple[int, ...], where: Path) -> tuple[int, ...]:
    try:
        return rule.op.source_shape(shape[rule.depth :])
    except IndexError:
        raise InputError(
            f'{where}: {rule.path} has shape {shape}, which this kind of model does not have; copy '
            'the checkpoint again'
        ) from None


def _check_names(wanted: set[str], found: set[str], where: Path) -> None:
    faults = [f'missing {path}' for path in sorted(wanted - found)]
    faults += [f'unexpected {path}' for path in sorted(found - wanted)]
    if faults:
        shown = '; '.join(faults[:8]) + (f'; and {len(faults) - 8} more' if faults[8:] else '')
        raise InputError(
            f'{where}: its parameters are not those of this kind of model: {shown}. Convert the '
            'checkpoint that was trained or converted as such'
        )
