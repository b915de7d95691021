"""What a seed of the fuzz is, and what those in `seeds` are made with."""

from collections.abc import Callable
import contextlib
import dataclasses
import hashlib
import importlib
import importlib.resources
import io
import json
from pathlib import Path
import re
import shutil
import tempfile
from typing import Any

import numpy as np

from mossjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Seed:
    """One file that is damaged, and what reads it.

    Attributes:
      name: of the seed. file: the one that is damaged, relative to the folder.
      kind: of the file, see `mutations.mutate`.
      make: writes the folder's files.
      read: folder -> what comes of it, comparable with ==.
      right: (folder, what came of it) -> whether an independent reader agrees.
      leaves: names that reading may leave behind or remove.
      weight: how often it is drawn.
    """

    name: str
    file: str
    kind: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    right: Callable[[Path, Any], bool] = lambda folder, result: True
    leaves: tuple[str, ...] = ()
    weight: int = 2


NANO = Path(str(importlib.resources.files('mossjax'))) / 'assets' / 'nano'


def digest(tensors) -> dict[str, tuple]:
    """What is comparable of lazily read tensors."""
    return {
        name: (tuple(shape), str(tensors.dtypes[name]), sha256(tensors.read(name)))
        for name, shape in tensors.shapes.items()
    }


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def copy(*files: Path) -> Callable[[Path], None]:
    return lambda folder: [shutil.copy(file, folder / file.name) for file in files] and None


def written(make: Callable[[Path], Any]) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        root = Path(folder) / 'x'
        return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob('*') if p.is_file()}


def put(files: Callable[[], dict[str, bytes]]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name, content in files().items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    return make


def command(name: str, *args: str) -> tuple[int, str]:
    """(exit code, what stderr got) of one command, run in this process."""
    from mossjax.cli import main as cli

    module = importlib.import_module(f'mossjax.cli.{name}')
    for flag in module.FLAGS:  # as new as a process of its own has them
        module.FLAGS[flag].unparse()
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        code = cli.main([name, *map(str, args)])
    return code, err.getvalue()


def refusal(code: int, said: str) -> None:
    """Raises what the command refused, if it did so as it must; absl's own lines may precede."""
    lines = [line for line in said.splitlines() if not re.match(r'[IW]\d{4} ', line)]
    if code == 2 and len(lines) == 1 and lines[0].startswith('mossjax '):
        raise InputError(lines[0])
    if code != 0 or lines:
        raise AssertionError(f'exit code {code}: {said[-2000:]}')


def lines(name: str, *entries: dict) -> Callable[[Path], None]:
    text = ''.join(json.dumps(entry) + '\n' for entry in entries)
    return lambda folder: (folder / name).write_text(text) and None
