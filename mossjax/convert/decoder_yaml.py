"""`flow/config.yaml`, one entry for each network of the decoder.

The released file is a program in disguise: YAML whose tags name Python classes to build. Here a
tag is read as the plain mapping below it and nothing is ever executed; `!ref <name>` (alone or in
a product) is looked up.
"""

import ast
from collections.abc import Collection, Mapping
import operator
from pathlib import Path
import re
from typing import Any

import yaml

from mossjax import paths, values
from mossjax.convert.yaml_reader import read_yaml
from mossjax.errors import InputError
from mossjax.files import replacing

MAX_REFERENCE = 200  # letters


class Ref(str):
    """The text of a `!ref`, looked up when a key that needs it is read."""


def read_root(path: str | Path) -> Mapping:
    """The whole file, {} where it is no mapping; a `!ref` is a `Ref`.

    Raises:
      InputError: see `yaml_reader.read_yaml`.
    """
    root = read_yaml(path, _tagged)
    return root if isinstance(root, Mapping) else {}


def _tagged(tag: str, value: Any) -> Any:
    return Ref(value) if tag == '!ref' and isinstance(value, str) else value


def flatten(
    tree: Mapping, where: str, leaves: Collection[str] = (), prefix: str = ''
) -> dict[str, object]:
    """Nested mappings to {dotted key: value}.

    Args:
      where: file and entry, for the message.
      leaves: dotted keys that hold a value.

    Raises:
      InputError: a key is given twice, or one of `leaves` has keys below it.
    """
    flat = {}
    for key, value in tree.items():
        # omegaconf's dictionary wraps its entries in one more level.
        name = prefix.rstrip('.') if key == 'content' else f'{prefix}{key}'
        inside = {name: value}
        if isinstance(value, Mapping):
            if name in leaves:
                raise InputError(f'{where}.{name} has keys below it where a value is due')
            inside = flatten(value, where, leaves, f'{name}.')
        if twice := sorted(set(inside) & set(flat)):
            raise InputError(f'{where}.{twice[0]} is given twice; keep one')
        flat.update(inside)
    return flat


_ARITHMETIC = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv,
}  # fmt: skip


class References:
    """Looks `!ref` up: `<name>`, `<a.b>` or four-function arithmetic on such numbers."""

    def __init__(self, root: Mapping, where: str):
        self._root, self._where, self._known, self._asked = root, where, {}, []

    def resolve(self, value: Any) -> Any:
        """What a reference stands for; any other value is returned as it is.

        Raises:
          InputError: it names nothing, leads back to itself, or cannot be worked out.
        """
        if not isinstance(value, Ref):
            return value
        if len(value) > MAX_REFERENCE:
            raise InputError(f'{self._where}: a reference of {len(value)} letters; write it out')
        if value in self._asked:
            raise InputError(f'{self._where}: references run in a circle at {value!s}')
        if value not in self._known:
            self._asked.append(value)
            self._known[value] = self._work_out(value)
            self._asked.pop()
        return self._known[value]

    def _work_out(self, text: str) -> Any:
        whole = re.fullmatch(r'\s*<([\w.]+)>\s*', text)
        if whole:
            return self._look_up(whole)
        filled = re.sub(r'<([\w.]+)>', lambda match: f'({self._look_up(match)})', text)
        try:
            return _arithmetic(ast.parse(filled.strip(), mode='eval').body)
        except (ArithmeticError, KeyError, RecursionError, TypeError, ValueError, SyntaxError):
            raise InputError(
                f'{self._where}: cannot work out {text}; write the number instead'
            ) from None

    def _look_up(self, match: re.Match) -> Any:
        node = self._root
        for key in match[1].split('.'):
            if not isinstance(node, Mapping) or key not in node:
                raise InputError(
                    f'{self._where}: refers to {match[0]}, which the file does not define'
                )
            node = node[key]
        return self.resolve(node)


def _arithmetic(node: ast.AST) -> int | float:
    """Every step is checked: products of products grow faster than anything."""
    if isinstance(node, ast.Constant):
        value = node.value
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = -_arithmetic(node.operand)
    elif isinstance(node, ast.BinOp):
        value = _ARITHMETIC[type(node.op)](_arithmetic(node.left), _arithmetic(node.right))
    else:
        raise TypeError(type(node).__name__)
    return values.number(value, 'a step')


def write_entry(path: str | Path, name: str, flat: Mapping[str, object]) -> None:
    """Sets one entry of a configuration file, given by dotted keys; the others stay.

    Raises:
      InputError: as of `plain_root`.
    """
    root, entry = plain_root(path), {}
    for key, value in flat.items():
        *parents, last = key.split('.')
        node = entry
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    with replacing(path) as temporary:
        text = yaml.safe_dump({**root, name: entry}, sort_keys=False)
        temporary.write_text(text, encoding='utf-8')


def plain_root(path: str | Path) -> Mapping:
    """What a file that `write_entry` wrote holds; {} where there is none.

    Raises:
      InputError: the file has tags, so it is upstream's own and holds more than its values.
    """

    def refuse(tag: str, value: Any) -> Any:
        where = paths.printable(path)
        raise InputError(f'{where}: was not written here ({tag}); name another directory')

    root = read_yaml(path, refuse) if Path(path).exists() else {}
    return root if isinstance(root, Mapping) else {}
