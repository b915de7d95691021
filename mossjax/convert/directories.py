"""Directories in upstream's Hugging Face layout: what all of them need, and writing the LM's."""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import os
from pathlib import Path
import shutil
import tempfile

import jax
import numpy as np

from mossjax.convert import rules, safetensors_io
from mossjax.convert.lm_rules import LM_RULES, module_order
from mossjax.errors import InputError
from mossjax.files import json_text, room_for
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.model import network
from mossjax.parallel.sharding import check_shapes


def save_lm(
    directory: str | Path,
    config: LMConfig,
    params: Mapping,
    *,
    files: Mapping[str, bytes | Path] | None = None,
    shard_bytes: int = safetensors_io.SHARD_BYTES,
) -> None:
    """Writes a directory that `placement.open_lm` and upstream's code can read.

    Args:
      directory: must not exist, or be empty.
      params: nested dict of arrays; they are stored in their own dtype.
      files: further files by name (tokenizer, chat template), as bytes or as paths to copy.
      shard_bytes: split the weights above this size.

    Raises:
      InputError: the directory is not empty, or parameters and config do not fit.
    """
    check_shapes(params, network(config).shapes, 'the parameters to save')
    with new_directory(directory) as temporary:
        host = jax.tree.map(np.asarray, dict(params))
        tensors = rules.to_tensors(LM_RULES, host)
        tensors = {name: tensors[name] for name in sorted(tensors, key=module_order)}
        safetensors_io.write(temporary / 'model.safetensors', tensors, shard_bytes=shard_bytes)
        stored = host['text_embed']['table'].dtype.name
        content = dataclasses.replace(config, dtype=stored).to_hf()
        (temporary / 'config.json').write_text(
            json_text(content, indent=2) + '\n', encoding='utf-8'
        )
        for name, data in (files or {}).items():
            data = data if isinstance(data, bytes) else Path(data).read_bytes()
            (temporary / name).write_bytes(data)


@contextlib.contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """A directory that appears at `path` when the block ends well, and not at all otherwise.

    Raises:
      InputError: `path` exists and is not an empty directory, or the disk is full.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f'{path}: already exists and is not empty. Remove it or name another.')
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f'.{path.name}.'))
    try:
        with room_for(path):
            yield temporary
            os.chmod(temporary, 0o755)
            os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
