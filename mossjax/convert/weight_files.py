"""The weight files of a directory, in whatever layout they came.

A checkpoint is one file, or shards with or without an index; in safetensors or as `torch.save`
wrote it; perhaps with the name of a variant in every file name (model.fp16.safetensors). What is
there decides; where two layouts stand side by side, the one that Transformers takes is read, unless
nothing says which of them is meant.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from pathlib import Path
import re
from typing import Protocol

from absl import logging
import numpy as np

from mossjax import paths, values
from mossjax.convert.safetensors_io import TensorFile
from mossjax.convert.torch_reader import TorchReader
from mossjax.errors import InputError
from mossjax.files import read_json

# By suffix: what reads one file.
READERS = {'.safetensors': TensorFile, '.bin': TorchReader, '.pt': TorchReader, '.pth': TorchReader}
# Of a directory; safetensors are preferred, they hold nothing but tensors.
_FORMATS = ('safetensors', 'bin')
_NAME = re.compile(r'[\w][\w .+=@-]{0,60}')  # fits any file system, in any letters
_POINTER = b'version https://git-lfs'
_SHARD = r'-(\d+)-of-(\d+)'


class Tensors(Protocol):
    """Tensors by name, each read when asked for."""

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, np.dtype]

    def read(self, name: str) -> np.ndarray: ...


class WeightFiles:
    """Tensors of one or several files.

    Attributes:
      files: the files, an index among them. where: what to call them in a message.
      shapes, dtypes: {name: tuple}, {name: numpy dtype}.
    """

    def __init__(self, of: Mapping[str, Tensors], files: Sequence[Path], where: Path):
        """
        Args:
          of: {tensor: the file that holds it}.
        """
        self._of, self.files, self.where = dict(of), tuple(files), where
        self.shapes = {name: file.shapes[name] for name, file in self._of.items()}
        self.dtypes = {name: file.dtypes[name] for name, file in self._of.items()}

    def read(self, name: str) -> np.ndarray:
        return self._of[name].read(name)


def open_tensors(path: str | Path, stem: str = 'model') -> WeightFiles:
    """Opens a file of weights, an index, or the weights of a directory.

    Args:
      stem: what file names of a directory begin with.

    Raises:
      InputError: nothing there, or it is damaged, incomplete or ambiguous.
    """
    path = Path(path)
    if path.is_dir():
        return _open_layout(_choose(path, stem), path, stem)
    if not path.is_file():
        raise _missing(path)
    return _open_index(path) if path.suffix == '.json' else _open_files([path], path)


def find(directory: Path, stem: str, suffixes: Sequence[str] = ('.safetensors', '.pt')):
    """The first file of this stem, by suffix, that is there; None where there is none."""
    files = (directory / f'{stem}{suffix}' for suffix in suffixes)
    return next((path for path in files if os.path.lexists(path)), None)


def open_stem(directory: Path, stem: str) -> tuple[Path, WeightFiles]:
    """(file, tensors) of one network of a codec's decoder.

    Raises:
      InputError: there is none, or it is damaged.
    """
    path = find(directory, stem)
    if path is None:
        raise InputError(
            f'{directory}: neither {stem}.safetensors nor {stem}.pt; '
            'pass the codec directory that holds the decoder (with the folder flow/ in it; of its '
            'Orbax form mossjax convert makes one)'
        )
    return path, open_tensors(path)


# ------------------------------------------------------------------------------------- layouts


@dataclasses.dataclass
class _Layout:
    """Files that belong together by their names.

    Attributes:
      form: 'safetensors' or 'bin'. variant: '' or e.g. 'fp16'.
      single, index: a file's name, '' if there is none.
      shards: {number: name}. count: how many there should be.
    """

    form: str
    variant: str
    single: str = ''
    index: str = ''
    shards: dict[int, str] = dataclasses.field(default_factory=dict)
    count: int = 0

    @property
    def names(self) -> list[str]:
        return [*filter(None, (self.single, self.index)), *self.shards.values()]


def _layouts(directory: Path, stem: str) -> list[_Layout]:
    """What there is, the most wanted first."""
    found: dict[tuple[int, str], _Layout] = {}
    for name in sorted(os.listdir(directory)):
        for rank, form in enumerate(_FORMATS):
            first = rf'(?:pytorch_)?{re.escape(stem)}'
            file = re.fullmatch(rf'{first}(?:\.([\w-]+?))?(?:{_SHARD})?\.{form}', name)
            index = re.fullmatch(rf'{first}\.{form}\.index(?:\.([\w-]+))?\.json', name)
            if not file and not index:
                continue
            variant = (file or index)[1] or ''
            layout = found.setdefault((rank, variant), _Layout(form, variant))
            if index:
                layout.index = name
            elif file[2]:
                layout.shards[int(file[2])] = name
                layout.count = max(layout.count, int(file[3]))
            else:
                layout.single = name
    return [found[key] for key in sorted(found)]


def _choose(directory: Path, stem: str) -> _Layout:
    """The layout to read.

    Raises:
      InputError: there is none, or two that differ in the variant alone.
    """
    layouts = _layouts(directory, stem)
    if not layouts:
        others = sorted(name for name in os.listdir(directory) if Path(name).suffix in READERS)
        raise InputError(
            f'{paths.printable(directory)} holds no {stem}.safetensors'
            + (f', but {values.listed(others)}; rename the file that holds the weights'
               if others else '; download the weights as well')
        )
    first, rivals = layouts[0], [x for x in layouts[1:] if x.form == layouts[0].form]
    if first.variant and rivals:
        names = values.listed([layout.names[0] for layout in layouts])
        raise InputError(
            f'{paths.printable(directory)} holds {names}: several variants. Rename the one you '
            f'want to {stem}.{first.form}'
        )
    if first.variant or first.form != _FORMATS[0]:
        logging.info('%s: the weights are read from %s', directory, values.listed(first.names))
    return first


def _open_layout(layout: _Layout, directory: Path, stem: str) -> WeightFiles:
    index = directory / layout.index if layout.index else None
    if layout.single and index:
        own = set(_read_index(index).values()) == {layout.single}
        if own:
            return _open_index(index)
        raise InputError(
            f'{paths.printable(directory)}: holds both {layout.single} and {layout.index}, which '
            'names other files. Remove the stale one.'
        )
    if index:
        if unnamed := sorted(set(layout.shards.values()) - set(_read_index(index).values())):
            raise InputError(
                f'{paths.printable(index)}: does not name {values.listed(unnamed, 2)}, which lies '
                'beside it. Download index and shards from the same revision.'
            )
        return _open_index(index)
    if layout.single and layout.shards:
        raise InputError(
            f'{paths.printable(directory)}: holds both {layout.single} and '
            f'{values.listed(layout.shards.values(), 2)}. Remove what is stale.'
        )
    if layout.single:
        return _open_files([directory / layout.single], directory / layout.single)
    if absent := sorted(set(range(1, layout.count + 1)) - set(layout.shards)):
        raise InputError(
            f'{paths.printable(directory)}: shard {values.listed(absent)} of {layout.count} is not '
            f'there, nor an index. Download {stem}.{layout.form} with all its parts.'
        )
    logging.info('%s: no index; all %d shards are read', directory, layout.count)
    return _open_files([directory / layout.shards[i] for i in sorted(layout.shards)], directory)


# --------------------------------------------------------------------------------------- files


def _open_files(files: Sequence[Path], where: Path) -> WeightFiles:
    of: dict[str, Tensors] = {}
    for path in files:
        file = _open_one(path)
        if twice := sorted(set(file.shapes) & set(of)):
            raise InputError(
                f'{paths.printable(path)}: tensor {twice[0]!r} is in another shard too. Download '
                'all shards from the same revision.'
            )
        of.update(dict.fromkeys(file.shapes, file))
    return WeightFiles(of, files, where)


def _open_index(index: Path) -> WeightFiles:
    """Raises InputError when a shard is missing or index and shards disagree."""
    weight_map, where = _read_index(index), paths.printable(index)
    files = {}
    for file in dict.fromkeys(weight_map.values()):
        if not (index.parent / file).is_file():
            raise InputError(
                f'{where}: shard {file} is not there. Download it into '
                f'{paths.printable(index.parent)}.'
            )
        files[file] = _open_one(index.parent / file)
    of = {name: files[file] for name, file in weight_map.items()}
    for name, file in weight_map.items():
        if name not in files[file].shapes:
            raise InputError(
                f'{where}: tensor {name!r} is not in {file}, where the index places it. '
                'Download index and shards from the same revision.'
            )
    stray = [name for file in files.values() for name in file.shapes if of.get(name) is not file]
    if stray:
        raise InputError(
            f'{where}: shards hold tensors the index does not place there: '
            f'{values.listed(stray, 5)}. Download index and shards from the same revision.'
        )
    return WeightFiles(of, [index, *(index.parent / file for file in files)], index)


def _open_one(path: Path) -> Tensors:
    if not path.is_file():
        raise _missing(path)
    with open(path, 'rb') as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise InputError(
                f'{paths.printable(path)} is a Git LFS pointer to the weights, not the weights; '
                'fetch them with: git lfs pull'
            )
    return READERS.get(path.suffix, TensorFile)(path)


def _missing(path: Path) -> InputError:
    shown = paths.printable(path)
    if path.is_symlink():
        return InputError(
            f'{shown} is a link to a file that is not there; a download was not finished. Download '
            'it again.'
        )
    if path.is_dir():
        return InputError(f'{shown} is a folder where a file is due. Download it again.')
    return InputError(f'{shown}: no such file. Give the directory that holds the weights.')


def _read_index(index: Path) -> dict[str, str]:
    """{tensor: name of the file that holds it}."""
    weight_map, where = read_json(index).get('weight_map'), paths.printable(index)
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f'{where}: no "weight_map" in it. Download the index again.')
    for file in weight_map.values():
        if not isinstance(file, str) or not _NAME.fullmatch(file) or Path(file).name != file:
            raise InputError(
                f'{where}: names the file {values.shown(file)} outside its own directory. Do not '
                'use this index; download it again from its publisher.'
            )
    return weight_map
