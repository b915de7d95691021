"""Conversion as data: a table of invertible rules between checkpoint tensors and parameters.

A rule names a tensor the way the checkpoint does and a parameter the way we do, and says how one
becomes the other. `{}` in a tensor name is the layer index of a stacked parameter; such a rule
gathers all its layers along axis 0 (a stack of stacks has two `{}` and two layer axes). Every
tensor must be consumed once and every parameter filled once; all faults are reported together.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import re

import numpy as np

from mossjax import values
from mossjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Op:
    """An invertible change of layout. Both functions get (array, shape wanted)."""

    name: str
    forward: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    inverse: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    # Checkpoint shape of a parameter shape (both without the layer axis).
    source_shape: Callable[[tuple[int, ...]], tuple[int, ...]]


IDENTITY = Op('identity', lambda x, s: x, lambda x, s: x, lambda s: s)
# torch Linear (out, in) <-> kernel (in, out); torch Conv1d (out, in, k) <-> kernel (k, in, out).
TRANSPOSE = Op('transpose', lambda x, s: x.T, lambda x, s: x.T, lambda s: s[::-1])
# torch Conv1d of width one (out, in, 1) <-> Linear kernel (in, out).
POINTWISE = Op(
    'pointwise',
    lambda x, s: x[:, :, 0].T,
    lambda x, s: x.T[:, :, None],
    lambda s: (s[1], s[0], 1),
)
# torch Linear (n * h, d) <-> (d, n, h), for query, key and value projections.
SPLIT_HEADS = Op(
    'split_heads',
    lambda x, s: x.T.reshape(s),
    lambda x, s: x.reshape(x.shape[0], -1).T,
    lambda s: (s[1] * s[2], s[0]),
)
# torch Linear (d, n * h) <-> (n, h, d), for the output projection.
MERGE_HEADS = Op(
    'merge_heads',
    lambda x, s: x.T.reshape(s),
    lambda x, s: x.reshape(-1, x.shape[-1]).T,
    lambda s: (s[2], s[0] * s[1]),
)
# (n * h,) bias <-> (n, h).
SPLIT_BIAS = Op(
    'split_bias', lambda x, s: x.reshape(s), lambda x, s: x.reshape(-1), lambda s: (s[0] * s[1],)
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table: tensor `name` (with `{}` for a layer index) <-> parameter `path`."""

    name: str
    path: str  # slash-joined keys into the parameter dict
    op: Op = IDENTITY
    first: int = 0  # layer index in the checkpoint of the parameter's layer 0

    @property
    def depth(self) -> int:
        """How many leading layer axes the parameter has."""
        return self.name.count('{}')

    def tensor(self, layer: tuple[int, ...]) -> str:
        """Name of the tensor that fills this place in the stack (() where there is none)."""
        return self.name.format(*(self.first + i for i in layer))


def flatten(tree: Mapping, prefix: str = '') -> dict[str, object]:
    """Nested dict to {slash-joined path: leaf}."""
    flat = {}
    for key, value in tree.items():
        path = f'{prefix}/{key}' if prefix else str(key)
        flat.update(flatten(value, path) if isinstance(value, Mapping) else {path: value})
    return flat


def unflatten(flat: Mapping[str, object]) -> dict:
    """Inverse of `flatten`."""
    tree: dict = {}
    for path, value in flat.items():
        *parents, last = path.split('/')
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


def expected_tensors(rules: Iterable[Rule], shapes: Mapping) -> dict[str, tuple[int, ...]]:
    """{tensor name: checkpoint shape} that a network of these parameter shapes needs."""
    flat = flatten(shapes)
    expected = {}
    for rule in rules:
        shape = tuple(flat[rule.path].shape)
        for layer in np.ndindex(shape[: rule.depth]):
            expected[rule.tensor(layer)] = rule.op.source_shape(shape[rule.depth :])
    return expected


def check(
    rules: Iterable[Rule],
    found: Mapping[str, tuple[int, ...]],
    shapes: Mapping,
    *,
    ignore: Iterable[str] = (),
    where: str = 'checkpoint',
    doubts: str = '',
    dtypes: Mapping[str, np.dtype] | None = None,
) -> None:
    """Compares tensor names and shapes with what the network needs, before anything is read.

    Args:
      found: {tensor name: shape} of the checkpoint.
      shapes: nested dict of ShapeDtypeStructs (`Network.shapes`).
      ignore: regular expressions of tensor names that may be present and are not used.
      where: what to call the checkpoint in the message.
      doubts: keys of the configuration that are likely wrong if something is.
      dtypes: {tensor name: dtype}; quantised weights mean nothing without their scales.

    Raises:
      InputError: naming missing, unexpected and mis-shaped tensors, or some that are no floats.
    """
    rules = list(rules)
    unfilled = set(flatten(shapes)) - {rule.path for rule in rules}
    if unfilled:
        raise ValueError(f'no rule fills parameters {sorted(unfilled)}')
    expected = expected_tensors(rules, shapes)
    unused = [re.compile(pattern) for pattern in ignore]
    faults = {'missing': [], 'unexpected': [], 'wrong shape': []}
    for name, shape in expected.items():
        if name not in found:
            faults['missing'].append(f'{name} {shape}')
        elif tuple(found[name]) != shape:
            faults['wrong shape'].append(f'{name} is {tuple(found[name])}, expected {shape}')
    faults['unexpected'] = [
        f'{name} {tuple(shape)}' for name, shape in found.items()
        if name not in expected and not any(pattern.fullmatch(name) for pattern in unused)
    ]
    if count := sum(map(len, faults.values())):
        said = [f'{kind}: {values.listed(names)}' for kind, names in faults.items() if names]
        doubts = f' ({doubts})' if doubts else ''
        raise InputError(
            f'{where}: {count} tensor(s) do not fit the configuration{doubts}: {"; ".join(said)}. '
            f'{_remedy(found)}'
        )
    if whole := [name for name in expected if dtypes and dtypes[name].kind not in 'fV']:
        raise InputError(
            f'{where}: {values.listed(whole, 2)} ({dtypes[whole[0]]}) are no floating numbers. '
            'Quantised checkpoints are not read: use the one in float32 or bfloat16'
        )


def _remedy(found: Iterable[str]) -> str:
    """What to do about tensors that do not fit, by the names there are."""
    if any('.lora_A.' in name or '.lora_B.' in name for name in found):
        return (
            'These are LoRA adapters or weights that they are not merged into: give an adapter '
            'with --adapter, or merge it with PEFT (merge_and_unload) and save the whole model.'
        )
    return 'Check that config and weights belong together and that the download is complete.'


def to_params(rules: Iterable[Rule], read: Callable[[str], np.ndarray], shapes: Mapping) -> dict:
    """Builds the parameter dict; `read(name)` returns one tensor. Call `check` first."""
    flat_shapes = flatten(shapes)
    flat = {}
    for rule in rules:
        shape = tuple(flat_shapes[rule.path].shape)
        layers = [
            rule.op.forward(read(rule.tensor(layer)), shape[rule.depth :])
            for layer in np.ndindex(shape[: rule.depth])
        ]
        flat[rule.path] = (
            np.stack(layers).reshape(shape) if rule.depth else np.ascontiguousarray(layers[0])
        )
    return unflatten(flat)


def to_tensors(rules: Iterable[Rule], params: Mapping) -> dict[str, np.ndarray]:
    """Inverse of `to_params`: {tensor name: array in the checkpoint's layout}."""
    flat = flatten(params)
    tensors = {}
    for rule in rules:
        value = np.asarray(flat[rule.path])
        source = rule.op.source_shape(value.shape[rule.depth :])
        for layer in np.ndindex(value.shape[: rule.depth]):
            tensors[rule.tensor(layer)] = np.ascontiguousarray(
                rule.op.inverse(value[layer], source)
            )
    return tensors
