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

from mossjax import values
from mossjax.errors import InputError

# The pickle holds names and shapes only: a thousand tensors take 0.2 MB.
MAX_PICKLE = 64 << 20
MAX_AXES = 16
_COUNT = values.Range(0, 2**62, whole=True)

STORAGES = {
    'DoubleStorage': np.float64, 'FloatStorage': np.float32, 'HalfStorage': np.float16,
    'BFloat16Storage': ml_dtypes.bfloat16, 'LongStorage': np.int64, 'IntStorage': np.int32,
    'ShortStorage': np.int16, 'CharStorage': np.int8, 'ByteStorage': np.uint8,
    'BoolStorage': np.bool_,
}  # fmt: skip


class _Fixed:
    """What a pickle may not change once it is made: it was checked then."""

    def __setstate__(self, state):
        raise pickle.UnpicklingError('it changes a finished tensor')


@dataclasses.dataclass(frozen=True)
class _Storage(_Fixed):
    key: str
    dtype: np.dtype
    count: int


@dataclasses.dataclass(frozen=True)
class _Tensor(_Fixed):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Inert(_Fixed):
    """A storage type standing in for torch's class of the same name; calling it is an error."""

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)


def _rebuild_tensor(storage, offset, shape, strides, *_ignored) -> _Tensor:
    """The arguments of torch's `_rebuild_tensor_v2`; gradients and hooks have no meaning here."""
    good = isinstance(storage, _Storage) and all(n in _COUNT for n in (offset, *strides))
    good = good and all(n in values.COUNT for n in shape) and len(shape) <= MAX_AXES
    if not good or len(shape) != len(strides):
        raise pickle.UnpicklingError('malformed tensor')
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    # Views that repeat elements are larger than what they view: one number can stand for 2^60.
    if math.prod(shape) and max(last + 1, math.prod(shape)) > storage.count:
        raise pickle.UnpicklingError('a tensor reaches beyond its storage')
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor, *_ignored) -> _Tensor:
    return tensor


_NAMES = {
    ('collections', 'OrderedDict'): OrderedDict,
    ('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
    ('torch._utils', '_rebuild_parameter'): _rebuild_parameter,
    **{('torch', name): _Inert(dtype) for name, dtype in STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f'it asks for {module}.{name}')
        return _NAMES[module, name]

    def persistent_load(self, pid):
        kind, storage, key, _device, count = pid
        good = kind == 'storage' and isinstance(storage, _Inert) and isinstance(key, str)
        if not good or count not in _COUNT:
            raise pickle.UnpicklingError('malformed storage')
        return _Storage(key, storage.dtype, count)


class TorchReader:
    """The tensors of a `.pt` file by name, each read when asked for.

    Attributes:
      shapes, dtypes: {name: shape}, {name: numpy dtype}; entries that are plain numbers or text
        (epoch, step) are left out.
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
        for name, tensor in self._tensors.items():
            self._check_storage(name, tensor.storage)
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        self.dtypes = {name: tensor.storage.dtype for name, tensor in self._tensors.items()}

    def _check_byte_order(self):
        try:
            entry = self._zip.getinfo(f'{self._root}byteorder')
        except KeyError:  # written before torch 2.1, which were little-endian machines
            return
        order = self._zip.read(entry) if entry.file_size < 16 else b'?'
        if order != b'little':
            raise InputError(f'{self.path}: big-endian data is not read here')

    def _check_storage(self, name: str, storage: _Storage):
        """Its bytes are in the file as they are: what is packed could unpack to any size."""
        try:
            entry = self._zip.getinfo(f'{self._root}data/{storage.key}')
        except KeyError:
            raise self._damaged(name, f'its storage {storage.key} is not there') from None
        wanted = storage.count * storage.dtype.itemsize
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != wanted:
            raise self._damaged(name, f'its storage {storage.key} does not have {wanted} bytes')

    def _damaged(self, name: str, what: str) -> InputError:
        return InputError(f'{self.path}: {name}: {what}; download the file again')

    def read(self, name: str) -> np.ndarray:
        """One tensor, contiguous.

        Raises:
          InputError: the archive is damaged.
        """
        tensor = self._tensors[name]
        storage = tensor.storage
        try:
            raw = self._zip.read(f'{self._root}data/{storage.key}')
            numbers = np.frombuffer(raw, storage.dtype, count=storage.count)
        except Exception as error:  # a damaged archive can fail in any way
            raise self._damaged(name, str(error)) from error
        strides = tuple(step * storage.dtype.itemsize for step in tensor.strides)
        if not math.prod(tensor.shape):
            return np.zeros(tensor.shape, storage.dtype)
        view = np.lib.stride_tricks.as_strided(
            numbers[tensor.offset :], tensor.shape, strides, writeable=False
        )
        return view.copy()
