"""`campplus.onnx`: the weights in a graph, by torch's names, read and replaced in place.

Exporters fold norms into the convolutions before them and call the results after a counter
(`onnx::Conv_3477`). Where a weight's name is lost the node tells (`/head/conv1/Conv`), and where
that is lost too, the order: a graph is exported in the order in which the network runs.
"""

from collections.abc import Callable, Mapping
import importlib.util
from pathlib import Path

import numpy as np

from mossjax.convert.campp_rules import Convolution, Norm, layers_of, parts
from mossjax.errors import InputError
from mossjax.files import replacing

MAX_BYTES = 1 << 30  # the released file has 28 MB


class OnnxTensors:
    """The tensors of a CAM++ graph by torch name.

    A norm that is folded is missing, its convolution has a bias: see `campp_rules`.

    Attributes:
      shapes, dtypes: {name: tuple}, {name: numpy dtype}.
    """

    def __init__(self, path: str | Path):
        """Raises InputError: `onnx` is not installed, the file is damaged or of another graph."""
        self.path = Path(path)
        self._onnx = _package()
        self._graph = self._load()
        try:
            self._survey()
        except InputError:
            raise
        except (IndexError, KeyError, TypeError, ValueError):  # damage can make any field anything
            raise self._damaged() from None

    def _survey(self) -> None:
        """Finds what is stored where."""
        self._stored = {tensor.name: tensor for tensor in self._graph.initializer}
        self._alias = {}  # output of a node that only passes a tensor on -> its input
        for node in self._graph.node:
            if node.op_type == 'Identity':
                self._alias[node.output[0]] = node.input[0]
            for attribute in node.attribute if node.op_type == 'Constant' else ():
                if attribute.name == 'value':
                    self._stored[node.output[0]] = attribute.t
        self._parts = parts(layers_of(self._stored))
        # {torch name: (node, which of its inputs)}
        self._places = self._convolutions() | self._norms()
        self.shapes = {name: tuple(self._tensor(name).dims) for name in self._places}
        number = self._onnx.helper.tensor_dtype_to_np_dtype
        self.dtypes = {name: number(self._tensor(name).data_type) for name in self._places}

    def read(self, name: str) -> np.ndarray:
        """One tensor.

        Raises:
          InputError: the file holds fewer numbers than it says.
        """
        return self._array(self._tensor(name), name)

    def write(self, name: str, tensor: np.ndarray) -> None:
        """Replaces one tensor, of the shape and dtype that it has; `save` makes a file of it."""
        if tensor.shape != self.shapes[name] or tensor.dtype != self.dtypes[name]:
            raise ValueError(
                f'{name} is {self.dtypes[name]} {self.shapes[name]} here, not {tensor.dtype} '
                f'{tensor.shape}'
            )
        if self.read(name).tobytes() == tensor.tobytes():
            return
        node, which = self._places[name]
        key = self._key(node.input[which])
        if sum(self._key(n.input[i]) == key for n, i in self._places.values()) > 1:
            # Exporters keep equal tensors once; this one is equal no more.
            key = node.input[which] = f'{name}.apart'
            self._stored[key] = self._graph.initializer.add()
        stored = self._stored[key]
        label = stored.name or key
        stored.CopyFrom(self._onnx.numpy_helper.from_array(np.ascontiguousarray(tensor), label))

    def save(self, path: str | Path) -> None:
        """Writes the graph as it is now; the file appears complete or not at all.

        Raises:
          InputError: the disk is full.
        """
        with replacing(path) as temporary:
            temporary.write_bytes(self._model.SerializeToString())

    def _load(self):
        if self.path.stat().st_size > MAX_BYTES:
            raise InputError(f'{self.path}: larger than {MAX_BYTES} bytes; it is not campplus.onnx')
        try:
            self._model = self._onnx.ModelProto.FromString(self.path.read_bytes())
        except Exception:  # protobuf's own error class, which differs between its implementations
            raise self._damaged() from None
        return self._model.graph

    def _array(self, tensor, name: str) -> np.ndarray:
        if tensor.data_location == self._onnx.TensorProto.EXTERNAL:
            raise InputError(f'{self.path}: keeps {name} in another file; save it as one file')
        try:
            return self._onnx.numpy_helper.to_array(tensor)
        except ValueError as error:
            raise InputError(f'{self.path}: {name}: {error}; download it again') from None

    def _key(self, name: str) -> str:
        """The stored tensor behind the input of a node."""
        seen = set()
        while name in self._alias and name not in seen:
            seen.add(name)
            name = self._alias[name]
        if name not in self._stored:
            raise self._other(f'{name!r} is computed, not stored')
        return name

    def _tensor(self, name: str):
        node, which = self._places[name]
        return self._stored[self._key(node.input[which])]

    def _convolutions(self) -> dict:
        names = [part.name for part in self._parts if isinstance(part, Convolution)]
        nodes = [node for node in self._graph.node if node.op_type == 'Conv']
        if len(nodes) != len(names):
            raise self._other(f'{len(nodes)} convolutions, expected {len(names)}')
        known = set(names)
        hints = [_hint(node, known) for node in nodes]
        if len(told := [name for name in hints if name]) != len(set(told)):
            raise self._other('two convolutions have the same name')
        rest = iter([name for name in names if name not in set(told)])
        places = {}
        for node, hint in zip(nodes, hints, strict=True):
            name = hint or next(rest)
            places[f'{name}.weight'] = (node, 1)
            if len(node.input) > 2 and node.input[2]:
                places[f'{name}.bias'] = (node, 2)
        return places

    def _norms(self) -> dict:
        norms = {part.name: part for part in self._parts if isinstance(part, Norm)}
        places = {}
        for node in self._graph.node:
            if node.op_type != 'BatchNormalization':
                continue
            name = node.input[3].removesuffix('.running_mean')
            if name not in norms or f'{name}.running_mean' in places:
                raise self._other(f'a norm is called {name!r}')
            places[f'{name}.running_mean'], places[f'{name}.running_var'] = (node, 3), (node, 4)
            if norms[name].affine:
                places[f'{name}.weight'], places[f'{name}.bias'] = (node, 1), (node, 2)
            else:
                scale, shift = (self._constant(node.input[i]) for i in (1, 2))
                if np.any(scale != 1) or np.any(shift != 0):
                    raise self._other(f'the norm {name} has a scale or a shift')
        return places

    def _constant(self, name: str) -> np.ndarray:
        return self._array(self._stored[self._key(name)], name)

    def _damaged(self) -> InputError:
        return InputError(
            f'{self.path}: not a whole ONNX file; download it again (an interrupted download or a '
            'Git LFS pointer looks like this)'
        )

    def _other(self, what: str) -> InputError:
        return InputError(
            f'{self.path}: {what}; this is another network than the CAM++ of the released codec. '
            'Take campplus.onnx from there'
        )


def replace(
    original: str | Path, path: str | Path, shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
) -> None:
    """Writes the graph of `original` with other numbers in it.

    Args:
      shapes: {torch name: shape} of all tensors that the graph has. read: returns one of them.

    Raises:
      InputError: as of `fitting`, or the disk is full.
    """
    graph = fitting(original, shapes)
    for name in shapes:
        graph.write(name, read(name).astype(graph.dtypes[name]))
    graph.save(path)


def fitting(original: str | Path, shapes: Mapping[str, tuple[int, ...]]) -> OnnxTensors:
    """A graph, if it has just these tensors.

    Raises:
      InputError: it has others (folded elsewhere, other widths), or there is none.
    """
    if not Path(original).is_file():
        raise InputError(
            f'{original}: no such file; the numbers of the speaker encoder are put into the graph '
            'that they came from. Copy it there'
        )
    graph = OnnxTensors(original)
    if wrong := sorted(set(shapes.items()) ^ set(graph.shapes.items())):
        raise InputError(
            f'{original}: does not have the tensors of these parameters ({wrong[0][0]} '
            f'{wrong[0][1]}, ...); name the graph that they were read from'
        )
    return graph


def _hint(node, known: set[str]) -> str | None:
    """Which of the known convolutions a node is, by its weight's name or its own."""
    weight = node.input[1].removesuffix('.weight') if len(node.input) > 1 else ''
    if weight in known:
        return weight
    # /head/layer1/layer1.0/conv1/Conv: a child of a Sequential repeats its parent.
    path: list[str] = []
    for step in node.name.strip('/').split('/')[:-1]:
        if path and step.startswith(f'{path[-1]}.'):
            path[-1] = step
        else:
            path.append(step)
    name = '.'.join(path)
    return name if name in known else None


def available() -> bool:
    """Whether ONNX files can be read on this machine."""
    return importlib.util.find_spec('onnx') is not None


def _package():
    if not available():
        raise InputError(
            "reading campplus.onnx needs the package onnx: pip install 'mossjax[onnx]', or convert "
            'the file to campplus.safetensors on a machine that has it'
        )
    import onnx
    import onnx.helper
    import onnx.numpy_helper

    return onnx
