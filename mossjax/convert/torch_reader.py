"""Reads tensors from a file that `torch.save` wrote, without torch and without running anything.

Such a file is a zip archive: a pickle (`data.pkl`) that describes the objects, and the raw bytes of
each storage beside it. Pickles can call any function; this reader knows five names (ordered
dictionaries, the two functions that make a tensor of a storage, the storage types) and refuses
every other by name.
"""

from collections import OrderedDict
from collections.abc import Mapping
import dataclasses
import io
import math
from pathlib import Path
import pickle
import zipfile

import ml_dtypes
import numpy as np

from mossjax.errors import InputError

# The pickle holds names and shapes only: a thousand tensors take 0.2 MB.
MAX_PICKLE = 64 << 20

_STORAGES = {
    'DoubleStorage': np.float64, 'FloatStorage': np.float32, 'HalfStorage': np.float16,
    'BFloat16Storage': ml_dtypes.bfloat16, 'LongStorage': np.int64, 'IntStorage': np.int32,
    'ShortStorage': np.int16, 'CharStorage': np.int8, 'ByteStorage': np.uint8,
    'BoolStorage': np.bool_,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    count: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Inert:
    """A storage type standing in for torch's class of the same name; calling it is an error."""

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)


def _rebuild_tensor(storage, offset, shape, strides, *_ignored) -> _Tensor:
    """The arguments of torch's `_rebuild_tensor_v2`; gradients and hooks have no meaning here."""
    good = isinstance(storage, _Storage) and all(
        isinstance(n, int) and n >= 0 for n in (offset, *shape, *strides)
    )
    if not good or len(shape) != len(strides):
        raise pickle.UnpicklingError('malformed tensor')
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= storage.count:
        raise pickle.UnpicklingError('a tensor reaches beyond its storage')
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor, *_ignored) -> _Tensor:
    return tensor


_NAMES = {
    ('collections', 'OrderedDict'): OrderedDict,
    ('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
    ('torch._utils', '_rebuild_parameter'): _rebuild_parameter,
    **{('torch', name): _Inert(dtype) for name, dtype in _STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f'it asks for {module}.{name}')
        return _NAMES[module, name]

    def persistent_load(self, pid):
        kind, storage, key, _device, count = pid
        if kind != 'storage' or not isinstance(storage, _Inert) or not isinstance(key, str):
            raise pickle.UnpicklingError('malformed storage')
        return _Storage(key, storage.dtype, int(count))


class TorchReader:
    """The tensors of a `.pt` file by name, each read when asked for.

    Attributes:
      shapes: {name: shape}; entries that are plain numbers or text (epoch, step) are left out.
    """

    def __init__(self, path: str | Path):
        """Raises InputError: no torch archive, damaged, or it holds more than tensors."""
        self.path = Path(path)
        try:
            self._zip = zipfile.ZipFile(self.path)
            pickles = [n for n in self._zip.namelist() if n.split('/')[-1] == 'data.pkl']
            if len(pickles) != 1:
                raise InputError(f'{path}: a zip archive, but not one that torch.save wrote')
            self._root = pickles[0].removesuffix('data.pkl')
            self._check_byte_order()
            if self._zip.getinfo(pickles[0]).file_size > MAX_PICKLE:
                raise InputError(f'{path}: its pickle is larger than {MAX_PICKLE} bytes')
            tree = _Unpickler(io.BytesIO(self._zip.read(pickles[0]))).load()
        except zipfile.BadZipFile as error:
            raise InputError(
                f'{path}: no zip archive. Download it again, or, if torch older than 1.6 wrote it, '
                'load and save it once with a newer torch.'
            ) from error
        except InputError:
            raise
        except Exception as error:  # a hostile pickle can fail in any way
            raise InputError(
                f'{path}: refused, this reader only takes tensors: {error}. '
                'Save the bare state dict, or convert the file to safetensors.'
            ) from error
        if not isinstance(tree, Mapping):
            raise InputError(f'{path}: holds a {type(tree).__name__}, expected a dict of tensors')
        self._tensors = {str(k): v for k, v in tree.items() if isinstance(v, _Tensor)}
        nested = [str(k) for k, v in tree.items() if isinstance(v, (Mapping, list, tuple))]
        if nested:
            raise InputError(
                f'{path}: entry {nested[0]!r} is a container; save the bare state dict instead'
            )
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}

    def _check_byte_order(self):
        try:
            order = self._zip.read(f'{self._root}byteorder')
        except KeyError:  # written before torch 2.1, which were little-endian machines
            return
        if order != b'little':
            raise InputError(f'{self.path}: big-endian data is not read here')

    def read(self, name: str) -> np.ndarray:
        """One tensor, contiguous.

        Raises:
          InputError: the archive is damaged or shorter than it says.
        """
        tensor = self._tensors[name]
        storage = tensor.storage
        try:
            raw = self._zip.read(f'{self._root}data/{storage.key}')
            values = np.frombuffer(raw, storage.dtype, count=storage.count)
        except (KeyError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f'{self.path}: {name}: {error}; download the file again') from error
        strides = tuple(step * storage.dtype.itemsize for step in tensor.strides)
        view = np.lib.stride_tricks.as_strided(
            values[tensor.offset :], tensor.shape, strides, writeable=False
        )
        return view.copy()
