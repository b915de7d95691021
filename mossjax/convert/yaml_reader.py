"""YAML from outside as plain mappings, lists and scalars: nothing is built, run or expanded.

Tags name things to construct. Here one is handed to the caller's function together with the plain
value below it; Python's own (`!!python/...`) are refused. A file whose aliases would make it
contain itself, or grow without bounds when they are written out, is refused too.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from mossjax import paths, values
from mossjax.errors import InputError
from mossjax.files import read_text

MAX_BYTES = 2**18  # the reader needs a second for each 100 kB
DEPTH = 50
_STANDARD = 'tag:yaml.org,2002:'
_PYTHON = f'{_STANDARD}python/'
_REMEDY = 'Download it again.'


def read_yaml(path: str | Path, tagged: Callable[[str, Any], Any] = lambda tag, value: value):
    """The content of one file.

    Args:
      tagged: (tag, plain value) of a node with a tag of its own -> what stands for it.

    Raises:
      InputError: the file is missing or too large, not YAML, has a key twice, contains itself, or
        holds a number that is not finite.
    """
    where = paths.printable(path)
    text = read_text(path, MAX_BYTES)
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        tree = _Reader(tagged, where).value(node) if node else None
    except RecursionError:
        raise InputError(f'{where}: nested too deep to be read. {_REMEDY}') from None
    except InputError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # ValueError: characters, numbers it cannot take
        said = ' '.join(str(error).split())
        raise InputError(f'{where}: not readable as YAML ({said}). {_REMEDY}') from None
    return values.plain(tree, where)


class _Reader:
    """From nodes to values; what several aliases name is made once."""

    def __init__(self, tagged: Callable, where: str):
        self._tagged, self._where, self._made, self._above = tagged, where, {}, []
        self._scalars = yaml.constructor.SafeConstructor()

    def value(self, node: yaml.Node) -> Any:
        if node in self._above or len(self._above) > DEPTH:
            raise InputError(
                f'{self._where}, line {node.start_mark.line + 1}: contains itself or is nested too '
                'deep; write it out'
            )
        if node not in self._made:
            self._above.append(node)
            self._made[node] = self._make(node)
            self._above.pop()
        return self._made[node]

    def _make(self, node: yaml.Node) -> Any:
        if node.tag.startswith(_PYTHON):
            raise InputError(
                f'{self._where}, line {node.start_mark.line + 1}: names Python code '
                f'({node.tag.removeprefix(_STANDARD)}), which is never run here; remove it'
            )
        if isinstance(node, yaml.MappingNode):
            value = self._mapping(node)
        elif isinstance(node, yaml.SequenceNode):
            value = [self.value(child) for child in node.value]
        else:
            value = self._scalar(node)
        return value if node.tag.startswith(_STANDARD) else self._tagged(node.tag, value)

    def _mapping(self, node: yaml.MappingNode) -> dict:
        found = {}
        for key_node, value_node in node.value:
            at = f'{self._where}, line {key_node.start_mark.line + 1}'
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == f'{_STANDARD}merge':
                raise InputError(f'{at}: a key that is no word; write it out')
            key = self._scalar(key_node)
            if key in found:
                raise InputError(f'{at}: key {values.shown(key)} is given twice; keep one')
            found[key] = self.value(value_node)
        return found

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        kind = node.tag.removeprefix(_STANDARD)
        if kind in ('merge', 'value'):  # '<<' and '=' where a value is due
            raise ValueError(f'{node.value} stands for nothing here')
        if kind not in ('null', 'bool', 'int', 'float'):
            return node.value  # text, dates, and what follows a tag of its own
        try:
            return getattr(self._scalars, f'construct_yaml_{kind}')(node)
        except (KeyError, IndexError):  # '!!bool maybe', '!!int' with nothing behind it
            raise ValueError(f'{values.shown(node.value)} is no {kind}') from None
