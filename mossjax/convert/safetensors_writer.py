"""safetensors shards that are filled tensor by tensor, in any order, and again after a kill."""

from collections.abc import Callable, Mapping
import math
import os
from pathlib import Path

import numpy as np

from mossjax.convert import safetensors_io
from mossjax.files import replacing, room_for

BLOCK_BYTES = 64 * 2**20  # of a tensor made contiguous at a time


class ShardWriter:
    """The weights of a directory: each file has its full size and its header from the start.

    Not for a directory that others may already read: the files look whole before they are. The
    caller fills a hidden directory and renames it.

    Attributes:
      shapes, dtypes: {name: tuple}, {name: numpy dtype} of all tensors, in file order.
    """

    def __init__(
        self, directory: Path, shapes: Mapping[str, tuple[int, ...]],
        dtypes: Mapping[str, np.dtype], order: Callable[[str], object],
        shard_bytes: int = safetensors_io.SHARD_BYTES, stem: str = 'model',
    ):
        """Makes the files, or takes up those that are there.

        Raises:
          InputError: the disk has no room for them.
        """
        names = sorted(shapes, key=order)
        self.shapes = {name: tuple(shapes[name]) for name in names}
        self.dtypes = {name: np.dtype(dtypes[name]) for name in names}
        self._directory, self._stem = Path(directory), stem
        sizes = {name: self._bytes(name) for name in names}
        groups = safetensors_io.group(sizes, shard_bytes)
        self._at: dict[str, tuple[Path, int]] = {}
        for i, members in enumerate(groups, start=1):
            path = self._directory / safetensors_io.shard_name(stem, i, len(groups))
            start, offsets = safetensors_io.layout(
                {n: self.shapes[n] for n in members}, {n: self.dtypes[n] for n in members}
            )
            self._at.update({name: (path, offset) for name, offset in offsets.items()})
            _prepare(path, start, len(start) + sum(sizes[n] for n in members))

    def write(self, name: str, tensor: np.ndarray) -> None:
        """Puts one tensor into its place."""
        path, offset = self._at[name]
        with room_for(path), open(path, 'r+b') as file:
            file.seek(offset)
            for block in blocks(tensor, BLOCK_BYTES):
                file.write(block.reshape(-1).view(np.uint8).data)

    def read(self, name: str) -> np.ndarray:
        """One tensor as it stands in the file."""
        path, offset = self._at[name]
        if not self._bytes(name):
            return np.zeros(self.shapes[name], self.dtypes[name])
        raw = np.memmap(path, np.uint8, 'r', offset, (self._bytes(name),))
        return np.asarray(raw).view(self.dtypes[name]).reshape(self.shapes[name])

    def finish(self) -> None:
        """Writes the index where there are several files."""
        files = {name: path.name for name, (path, _) in self._at.items()}
        if len(set(files.values())) > 1:
            total = sum(map(self._bytes, self.shapes))
            # Read by people too: tensors in the order of the modules.
            text = safetensors_io.index_text({n: files[n] for n in self.shapes}, total)
            with replacing(self._directory / f'{self._stem}.safetensors.index.json') as temporary:
                temporary.write_text(text)

    def _bytes(self, name: str) -> int:
        return math.prod(self.shapes[name]) * self.dtypes[name].itemsize


def blocks(tensor: np.ndarray, limit: int):
    """Contiguous pieces of a tensor in C order, of about `limit` bytes each."""
    if tensor.ndim == 0 or tensor.nbytes <= limit:
        yield np.ascontiguousarray(tensor)
        return
    rows = max(1, limit * len(tensor) // tensor.nbytes)
    for start in range(0, len(tensor), rows):
        yield np.ascontiguousarray(tensor[start : start + rows])


def _prepare(path: Path, start: bytes, size: int) -> None:
    """The file with its header, and its room on the disk taken."""
    if path.exists() and path.stat().st_size == size:
        with open(path, 'rb') as file:
            if file.read(len(start)) == start:
                return
    with room_for(path), open(path, 'wb') as file:
        file.write(start)
        file.flush()
        os.posix_fallocate(file.fileno(), 0, size)
