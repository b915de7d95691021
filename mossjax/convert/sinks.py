"""Where the tensors of a Hugging Face directory are written: each network to files of its format.

safetensors files are filled in any order. Archives of torch and ONNX graphs cannot be; their
tensors are kept in a hidden file until all are there, and then the real one is written and read
back.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from pathlib import Path
import sys

import numpy as np

from mossjax.convert import campp_onnx, certificate, torch_writer
from mossjax.convert.codec_parts import ONNX, SAFETENSORS, TORCH, Part
from mossjax.convert.safetensors_writer import ShardWriter
from mossjax.convert.source import Kind, Together, prefixed
from mossjax.convert.torch_reader import TorchReader
from mossjax.convert.weight_files import Tensors
from mossjax.errors import InputError

SCRATCH = '.unfinished'  # folder in the directory that is being made


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """A file that is written once all its tensors are there.

    Attributes:
      tensors: takes them, and keeps them over a kill.
      path: the file. save: writes it of tensors. open: reads it back.
    """

    tensors: ShardWriter
    path: Path
    save: Callable[[Path, Tensors], None]
    open: Callable[[Path], Tensors]

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self.tensors.shapes

    @property
    def dtypes(self) -> Mapping[str, np.dtype]:
        return self.tensors.dtypes

    def read(self, name: str) -> np.ndarray:
        return self.tensors.read(name)

    def write(self, name: str, tensor: np.ndarray) -> None:
        self.tensors.write(name, tensor)

    def finish(self) -> None:
        """Writes the file.

        Raises:
          InputError: it reads otherwise than it was written.
        """
        self.save(self.path, self.tensors)
        found = self.open(self.path)
        if set(found.shapes) != set(self.shapes) or not all(
            certificate.same_bytes(found.read(name), self.read(name)) for name in self.shapes
        ):
            raise InputError(
                f'{self.path} reads otherwise than it was written; the disk or memory of this '
                'machine is at fault: check it and convert again'
            )


Files = tuple[ShardWriter | Rewritten, ...]  # each with `finish`


def hugging_face(
    kind: Kind, tensors: Tensors, directory: Path, shard_bytes: int, graph: Path
) -> tuple[Together, Files]:
    """(what takes all tensors, the files to finish once it has them).

    Args:
      tensors: shapes and dtypes of what is to be written. graph: of the speaker encoder's part.

    Raises:
      InputError: the disk has no room for them.
    """
    shapes = dict(tensors.shapes)
    sinks, files = [], []
    for part in kind.parts:
        own = {n.removeprefix(part.front): n for n in shapes if n.startswith(part.front)}
        bare = {name: shapes.pop(full) for name, full in own.items()}
        dtypes = {name: tensors.dtypes[full] for name, full in own.items()}
        file = _file(part, bare, dtypes, directory, graph)
        files.append(file)
        sinks.append(prefixed(file, part.front))
    if shapes:
        dtypes = {name: tensors.dtypes[name] for name in shapes}
        files.append(ShardWriter(directory, shapes, dtypes, kind.order, shard_bytes))
        sinks.append(files[-1])
    return Together(tuple(sinks)), tuple(files)


def check_graph(kind: Kind, tensors: Tensors, graph: Path) -> None:
    """Refuses a graph that does not take the tensors of its part, before anything is written.

    Raises:
      InputError: see `campp_onnx.fitting`.
    """
    for part in kind.parts:
        if part.suffix == ONNX:
            campp_onnx.fitting(graph, {
                name.removeprefix(part.front): shape for name, shape in tensors.shapes.items()
                if name.startswith(part.front)
            })


def _file(part: Part, shapes, dtypes, directory: Path, graph: Path) -> ShardWriter | Rewritten:
    path = directory / part.file
    folder = path.parent if part.suffix == SAFETENSORS else directory / SCRATCH
    path.parent.mkdir(exist_ok=True)
    folder.mkdir(exist_ok=True)
    order = {name: i for i, name in enumerate(shapes)}
    writer = ShardWriter(
        folder, shapes, dtypes, order.__getitem__, sys.maxsize, Path(part.name).name
    )
    if part.suffix == TORCH:
        return Rewritten(writer, path, _save_torch, TorchReader)
    if part.suffix == ONNX:
        save = functools.partial(_save_onnx, graph)
        return Rewritten(writer, path, save, campp_onnx.OnnxTensors)
    return writer


def _save_onnx(graph: Path, path: Path, tensors: Tensors) -> None:
    campp_onnx.replace(graph, path, tensors.shapes, tensors.read)


def _save_torch(path: Path, tensors: Tensors) -> None:
    torch_writer.write(path, tensors.shapes, tensors.dtypes, tensors.read)
