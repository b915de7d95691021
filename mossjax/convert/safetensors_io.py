"""safetensors files: read lazily, checked before use; written whole or not at all.

Format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}},
then the tensors' bytes. A sharded checkpoint adds an index {"weight_map": {name: file}}.
"""

from collections.abc import Mapping
import json
import math
import os
from pathlib import Path
import tempfile

import ml_dtypes
import numpy as np

from mossjax import values
from mossjax.errors import InputError
from mossjax.files import room_for

DTYPES = {
    'F64': np.dtype(np.float64),
    'F32': np.dtype(np.float32),
    'F16': np.dtype(np.float16),
    'BF16': np.dtype(ml_dtypes.bfloat16),
    'I64': np.dtype(np.int64),
    'I32': np.dtype(np.int32),
    'I16': np.dtype(np.int16),
    'I8': np.dtype(np.int8),
    'U8': np.dtype(np.uint8),
    'BOOL': np.dtype(np.bool_),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
MAX_HEADER = 100 * 2**20  # bytes; the reference implementation's limit
MAX_AXES = 16
_KEYS = {'dtype', 'shape', 'data_offsets'}
_OFFSET = values.Range(0, 2**62, whole=True)
SHARD_BYTES = 5 * 10**9  # Transformers' default


class TensorFile:
    """One file: its header is read and checked on opening, tensors on demand.

    Attributes:
      shapes, dtypes: {name: tuple}, {name: numpy dtype}, in the file's order.
    """

    def __init__(self, path: str | Path):
        """Raises InputError for a file that is missing, truncated or not safetensors."""
        self.path = Path(path)
        header, self._start = _read_header(self.path)
        size = self.path.stat().st_size - self._start
        self.shapes, self.dtypes, self._begin = {}, {}, {}
        notes = header.pop('__metadata__', {})
        texts = [*notes, *notes.values()] if isinstance(notes, dict) else [None]
        if not all(isinstance(text, str) and values.is_text(text) for text in texts):
            raise _damaged(self.path, '__metadata__ in its header is no object of texts')
        for name, entry in header.items():
            self._add(name, entry, size)
        self._check_cover(size)

    def _add(self, name, entry, size):
        entry = entry if isinstance(entry, dict) else {}
        code, shape = entry.get('dtype'), _counts(entry.get('shape'), values.COUNT)
        span = _counts(entry.get('data_offsets'))
        good = isinstance(code, str) and values.is_text(name) and set(entry) == _KEYS
        if not good or shape is None or span is None or len(span) != 2 or len(shape) > MAX_AXES:
            raise _damaged(self.path, f'the header entry of {values.shown(name)} is malformed')
        if code not in DTYPES:
            raise InputError(
                f'{self.path}: tensor {name!r} has dtype {code}, which is not supported; convert '
                f'it to one of {", ".join(DTYPES)}.'
            )
        begin, end = span
        if end - begin != math.prod(shape) * DTYPES[code].itemsize:
            raise _damaged(self.path, f'shape and byte range of {name!r} disagree')
        if end > size:
            raise _damaged(self.path, f'it ends before tensor {name!r} does')
        self.shapes[name], self.dtypes[name], self._begin[name] = shape, DTYPES[code], begin

    def _check_cover(self, size: int):
        """Every byte belongs to one tensor, as the format has it."""
        end, before = 0, ''
        for name in sorted(self._begin, key=lambda n: (self._begin[n], self._bytes(n))):
            if self._begin[name] < end and self._bytes(name):
                raise _damaged(self.path, f'tensors {before!r} and {name!r} share bytes')
            if self._begin[name] > end:
                raise _damaged(self.path, f'no tensor has the bytes before {name!r}')
            end, before = max(end, self._begin[name] + self._bytes(name)), name
        if end < size:
            raise _damaged(self.path, f'no tensor has its last {size - end} bytes')

    def _bytes(self, name: str) -> int:
        return math.prod(self.shapes[name]) * self.dtypes[name].itemsize

    def read(self, name: str) -> np.ndarray:
        """One tensor, backed by the file (pages are loaded as they are touched, read-only)."""
        shape = self.shapes[name]
        if math.prod(shape) == 0:
            return np.zeros(shape, self.dtypes[name])
        raw = np.memmap(
            self.path, np.uint8, 'r', self._start + self._begin[name],
            (math.prod(shape) * self.dtypes[name].itemsize,),
        )  # fmt: skip
        return np.asarray(raw).view(self.dtypes[name]).reshape(shape)


def write(
    path: str | Path, tensors: Mapping[str, np.ndarray], *, shard_bytes: int | None = None
) -> None:
    """Writes tensors in the given order; each file appears complete or not at all.

    Args:
      path: the .safetensors file. When split, shards are called STEM-00001-of-0000N.safetensors
        and `path` itself is not written but STEM.safetensors.index.json is.
      shard_bytes: start a new file before one would exceed this many bytes (Transformers: 5e9).

    Raises:
      InputError: a dtype that cannot be stored, or a full disk.
    """
    path = Path(path)
    groups = group({n: a.nbytes for n, a in tensors.items()}, shard_bytes)
    if len(groups) == 1:
        _write_one(path, tensors)
        return
    weight_map = {}
    for i, names in enumerate(groups, start=1):
        file = shard_name(path.stem, i, len(groups))
        _write_one(path.with_name(file), {name: tensors[name] for name in names})
        weight_map.update(dict.fromkeys(names, file))
    text = index_text(weight_map, sum(a.nbytes for a in tensors.values()))
    _write_atomically(path.with_name(f'{path.name}.index.json'), [text.encode()])


def shard_name(stem: str, i: int, count: int) -> str:
    """File name of shard i, counted from 1; STEM.safetensors where there is only one."""
    return f'{stem}-{i:05d}-of-{count:05d}.safetensors' if count > 1 else f'{stem}.safetensors'


def index_text(weight_map: Mapping[str, str], total: int) -> str:
    """What the index of a sharded checkpoint holds; `total` is the bytes of all tensors."""
    content = {'metadata': {'total_size': total}, 'weight_map': dict(weight_map)}
    return json.dumps(content, indent=2) + '\n'


def group(sizes: Mapping[str, int], limit: int | None) -> list[list[str]]:
    """Names in order, cut before the sum of sizes passes the limit."""
    groups, used = [[]], 0
    for name, size in sizes.items():
        if limit is not None and groups[-1] and used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups


def layout(
    shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, np.dtype]
) -> tuple[bytes, dict[str, int]]:
    """(what a file of these tensors starts with, {name: offset in the file}), in storage order.

    Raises:
      InputError: a dtype that the format does not have.
    """
    header, end, begins = {'__metadata__': {'format': 'pt'}}, 0, {}
    # Wide dtypes first, so that every tensor starts at a multiple of its item size.
    for name in sorted(shapes, key=lambda n: -np.dtype(dtypes[n]).itemsize):
        dtype = np.dtype(dtypes[name])
        if dtype not in CODES:
            raise InputError(f'tensor {name!r} has dtype {dtype}, which cannot be stored.')
        begin, end = end, end + math.prod(shapes[name]) * dtype.itemsize
        begins[name] = begin
        header[name] = {
            'dtype': CODES[dtype], 'shape': list(shapes[name]), 'data_offsets': [begin, end]
        }
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    start = len(text).to_bytes(8, 'little') + text
    return start, {name: len(start) + begin for name, begin in begins.items()}


def _write_one(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    start, offsets = layout(
        {name: x.shape for name, x in tensors.items()},
        {name: x.dtype for name, x in tensors.items()},
    )

    def pieces():
        yield start
        for name in offsets:
            yield np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data

    _write_atomically(path, pieces())


def _write_atomically(path: Path, pieces) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    try:
        with room_for(path), os.fdopen(handle, 'wb') as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _counts(value: object, accepted: values.Range = _OFFSET) -> tuple[int, ...] | None:
    """A list of such numbers, None if it is something else."""
    good = isinstance(value, list) and all(n in accepted for n in value)
    return tuple(value) if good else None


def _read_header(path: Path) -> tuple[dict, int]:
    """(JSON header, offset of the first tensor byte)."""
    size = path.stat().st_size
    with open(path, 'rb') as file:
        first = file.read(8)
        length = int.from_bytes(first, 'little')
        if len(first) < 8 or length > size - 8:
            raise _damaged(path, 'its header is longer than the file')
        if length > MAX_HEADER:
            raise _damaged(path, f'its header claims {length} bytes')
        text = file.read(length)
    try:
        header = values.parse_json(text, 'its header', '')
    except InputError as error:
        raise _damaged(path, str(error).rstrip('. ')) from None
    if not isinstance(header, dict):
        raise _damaged(path, 'its header is not a JSON object')
    return header, 8 + length


def _damaged(path: Path, what: str) -> InputError:
    return InputError(
        f'{path}: not a whole safetensors file: {what}. Download it again (an interrupted '
        'download looks like this).'
    )
