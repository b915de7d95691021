"""What is in place of a conversion that is under way, so that it can go on after a kill."""

from __future__ import annotations

import json
import os
from pathlib import Path
import shutil
import threading

from absl import logging
import jax.numpy as jnp
import numpy as np

from mossjax import values
from mossjax.convert import certificate
from mossjax.errors import InputError


class Journal:
    """Which tensors are in place, one JSON line each; the first line says of which conversion."""

    NAME = 'progress.jsonl'

    def __init__(self, directory: Path, identity: dict):
        path = directory / self.NAME
        new = not path.exists()
        self._file, self._lock = open(path, 'a', encoding='utf-8'), threading.Lock()
        if new:
            self._write(identity)

    @classmethod
    def resume(cls, directory: Path, identity: dict) -> dict[str, dict]:
        """{tensor: entry} of an interrupted conversion; what another one left is removed.

        A journal that is damaged is one of another conversion: everything is made anew.
        """
        path = directory / cls.NAME
        if not directory.exists():
            return {}
        if not directory.is_dir():
            raise InputError(f'{directory} is in the way of the conversion; remove or rename it')
        whole = _complete_lines(path)
        done = _entries(whole, identity) if whole else None
        if done is None:
            logging.info('%s: left by another conversion, removed', directory)
            shutil.rmtree(directory)
            return {}
        os.truncate(path, sum(len(line) + 1 for line in whole))  # a kill tears the last line
        logging.info('going on where the conversion stopped, %d tensors are in place', len(done))
        return done

    def add(self, name: str, entry: dict) -> None:
        self._write({'tensor': name, **entry})

    def _write(self, line: dict) -> None:
        with self._lock:
            self._file.write(json.dumps(line) + '\n')
            self._file.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()


def _complete_lines(path: Path) -> list[bytes]:
    """Those that end, [] where there is no such file."""
    try:
        return path.read_bytes().split(b'\n')[:-1]
    except OSError:
        return []


def _entries(lines: list[bytes], identity: dict) -> dict[str, dict] | None:
    """{tensor: entry} of a journal's lines; None if it is not the one of this conversion."""
    try:
        first, *rest = [values.parse_json(line, Journal.NAME) for line in lines]
    except InputError:
        return None
    known, done = identity['tensors'], {}
    if first != identity or not all(isinstance(entry, dict) for entry in rest):
        return None
    for entry in rest:
        name = entry.pop('tensor', None)
        if not isinstance(name, str) or not _described(entry, known.get(name), identity):
            return None
        done[name] = entry
    return done


def _described(entry: dict, tensor: list | None, identity: dict) -> bool:
    """Whether an entry is what the loop writes of such a tensor."""
    if tensor is None or not identity['options']['certify']:
        return tensor is not None and not entry
    whole = set(entry) == {*certificate.FIELDS, 'equal'} and isinstance(entry['sha256'], str)
    return whole and entry['equal'] is True and [entry['shape'], entry['dtype']] == tensor


def is_float(dtype: np.dtype) -> bool:
    """Whether a cast of floating tensors means this one, bfloat16 among them."""
    return jnp.issubdtype(dtype, jnp.floating)
