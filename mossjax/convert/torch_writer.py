"""Writes a file that `torch.load(..., weights_only=True)` reads, without torch.

The archive is described in `torch_reader`. Its pickle is put together here opcode by opcode: a
pickler would have to import torch to name its functions.
"""

from collections.abc import Callable, Mapping
import math
from pathlib import Path
import struct
import zipfile

import numpy as np

from mossjax.convert.torch_reader import STORAGES
from mossjax.errors import InputError
from mossjax.files import replacing

_STORAGE_OF = {np.dtype(dtype): name for name, dtype in STORAGES.items()}
_PROTO, _STOP, _MARK, _TUPLE, _REDUCE = b'\x80\x02', b'.', b'(', b't', b'R'
_EMPTY_DICT, _SETITEMS, _PERSISTENT, _FALSE, _EMPTY_TUPLE = b'}', b'u', b'Q', b'\x89', b')'
_MEMBER_DATE = (1980, 1, 1, 0, 0, 0)  # the same bytes whenever it is written


def write(
    path: str | Path, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, np.dtype],
    read: Callable[[str], np.ndarray],
) -> None:
    """Writes tensors, one in memory at a time; the file appears complete or not at all.

    Args:
      shapes, dtypes: {name: ...}, in file order. read: returns one of them.

    Raises:
      InputError: a dtype that torch files do not have, or a full disk.
    """
    path = Path(path)
    for name, dtype in dtypes.items():
        if np.dtype(dtype) not in _STORAGE_OF:
            raise InputError(f'tensor {name!r} has dtype {np.dtype(dtype)}, which torch has not')
    with replacing(path) as temporary, zipfile.ZipFile(temporary, 'w') as archive:

        def member(name: str) -> zipfile.ZipInfo:  # stored as it is: torch does not decompress
            return zipfile.ZipInfo(f'{path.stem}/{name}', _MEMBER_DATE)

        archive.writestr(member('data.pkl'), _pickle(shapes, dtypes))
        archive.writestr(member('byteorder'), b'little')
        for key, name in enumerate(shapes):
            tensor = np.asarray(read(name), dtypes[name], order='C')
            if tensor.shape != tuple(shapes[name]):
                raise ValueError(f'{name} is {tensor.shape}, not {shapes[name]}')
            with archive.open(member(f'data/{key}'), 'w', force_zip64=True) as file:
                file.write(tensor.reshape(-1).view(np.uint8).data)
        archive.writestr(member('version'), b'3\n')


def _pickle(shapes: Mapping, dtypes: Mapping) -> bytes:
    """{name: torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())}."""
    items = b''.join(
        _text(name) + _tensor(str(key), tuple(shapes[name]), np.dtype(dtypes[name]))
        for key, name in enumerate(shapes)
    )
    return _PROTO + _EMPTY_DICT + _MARK + items + _SETITEMS + _STOP


def _tensor(key: str, shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    storage = _tuple(
        _text('storage'), _global('torch', _STORAGE_OF[dtype]), _text(key), _text('cpu'),
        _integer(math.prod(shape)),
    )  # fmt: skip
    hooks = _global('collections', 'OrderedDict') + _EMPTY_TUPLE + _REDUCE
    arguments = _tuple(
        storage + _PERSISTENT, _integer(0), _integers(shape), _integers(strides), _FALSE, hooks
    )
    return _global('torch._utils', '_rebuild_tensor_v2') + arguments + _REDUCE


def _tuple(*parts: bytes) -> bytes:
    return _MARK + b''.join(parts) + _TUPLE


def _integers(values: tuple[int, ...]) -> bytes:
    return _tuple(*(_integer(n) for n in values))


def _integer(n: int) -> bytes:
    if n < 1 << 31:
        return b'J' + struct.pack('<i', n)
    return b'\x8a\x08' + struct.pack('<q', n)  # LONG1 of eight bytes


def _text(text: str) -> bytes:
    raw = text.encode()
    return b'X' + struct.pack('<I', len(raw)) + raw


def _global(module: str, name: str) -> bytes:
    return f'c{module}\n{name}\n'.encode()
