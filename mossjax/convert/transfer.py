"""A conversion: every tensor read once, written once, read back, and written down.

Both sides are tensors under checkpoint names, so one loop converts in either direction. Work goes
on in a hidden directory beside the destination, which takes its name when everything is there; a
journal in it makes an interrupted conversion go on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import datetime
import functools
import json
import math
import os
from pathlib import Path
import shutil
import sys

import numpy as np

from mossjax import __version__, checkpoint
from mossjax.convert import (
    certificate,
    codec_folder,
    codec_parts,
    kinds,
    reference,
    rules,
    sinks,
)
from mossjax.convert.journal import Journal, is_float
from mossjax.convert.orbax_source import UNUSED
from mossjax.convert.orbax_tensors import OrbaxTensors, create
from mossjax.convert.reference import Comparison
from mossjax.convert.safetensors_io import SHARD_BYTES
from mossjax.convert.safetensors_writer import ShardWriter
from mossjax.convert.source import CONFIG, HUGGING_FACE, Source, Together
from mossjax.convert.weight_files import Tensors
from mossjax.errors import InputError
from mossjax.files import json_text, replacing, room_for
from mossjax.models.lm.config import with_dtype

# Tensors above this size are converted one at a time, which bounds the memory.
LARGE_BYTES = 256 * 2**20
SPARE_BYTES = 64 * 2**20  # free disk asked for beside the tensors
Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Options:
    """What may be asked of a conversion.

    Attributes:
      dtype: numpy dtype name to store floating tensors in; '' keeps each one's own.
      certify: hash, describe and read back every tensor.
      shard_bytes: of the files of a Hugging Face directory.
    """

    dtype: str = ''
    certify: bool = True
    shard_bytes: int = SHARD_BYTES


def convert(
    source: Source, target: str | Path, options: Options = Options(),  # noqa: B008
    progress: Callable[[int, int], Progress] = lambda total, done: lambda n: None,
) -> dict | None:
    """Writes `source` to `target` in the other form; returns the certificate.

    Args:
      progress: (bytes in all, bytes already there) -> a function told the bytes of each tensor.

    Raises:
      InputError: `target` is in use, the disk is too small (seen before anything is written), or a
        tensor did not come back as it was.
    """
    target = Path(os.path.abspath(target))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f'{target}: already exists and is not empty. Remove it or name another.')
    tensors = _in_dtype(source, options.dtype) if options.dtype else source.tensors
    partial = target.with_name(f'.{target.name}.converting')
    graph = source.path / codec_parts.GRAPH
    if source.becomes == HUGGING_FACE:
        sinks.check_graph(source.kind, tensors, graph)
    identity = _identity(source, tensors, options)
    done = Journal.resume(partial, identity)
    if done and not _usable(source, partial):
        shutil.rmtree(partial)
        done = {}
    _check_room(target, source, tensors, partial)
    partial.mkdir(parents=True, exist_ok=True)
    with room_for(target):
        sink, files = _sink(source, tensors, partial, options, graph)
        with Journal(partial, identity) as journal:
            entries = _run(tensors, sink, done, journal, options.certify, progress)
        differing = sorted(name for name, entry in entries.items() if not entry.pop('equal', True))
        if differing:
            shutil.rmtree(partial, ignore_errors=True)
            raise InputError(
                f'{target}: {len(differing)} tensors read back otherwise than they were written '
                f'({", ".join(differing[:5])}); the disk or memory of this machine is at fault. '
                'Nothing was kept: check it and convert again'
            )
        for file in files:
            file.finish()
        _copy_companions(source, partial, tensors, options)
        paper = _certificate(source, entries, options) if options.certify else None
        if paper:
            (partial / certificate.NAME).write_text(json.dumps(paper, indent=1) + '\n')
        (partial / Journal.NAME).unlink()
        shutil.rmtree(partial / sinks.SCRATCH, ignore_errors=True)  # a journal counts on it
        if target.exists():
            target.rmdir()
        os.replace(partial, target)
    return paper


def verify(directory: str | Path, original: str | Path | None = None, progress=None) -> list[str]:
    """Faults of a converted directory against its certificate, [] if it is whole.

    Args:
      original: the directory it was made from; its files are hashed and compared too.
      progress: as of `convert`.

    Raises:
      InputError: there is no certificate, or a directory cannot be opened.
    """
    paper, tensors = certificate.load(Path(directory)), kinds.stored_tensors(Path(directory))
    tell = progress(_bytes(tensors), 0) if progress else (lambda n: None)
    faults = certificate.compare(paper, tensors.shapes, tensors.read, tell)
    if original is not None:
        for name, record in paper['source']['files'].items():
            path = Path(original) / name
            found = certificate.file_record(path) if path.is_file() else None
            if found != record:
                said = 'differs from the one converted' if found else 'missing'
                faults.append(f'{path}: {said}')
    return faults


def compare_logits(directory: str | Path, original: str | Path) -> Comparison:
    """Logits of a converted directory against those of the one it was made from, see `reference`.

    Raises:
      InputError: as of `verify`.
    """
    made = certificate.load(Path(directory))['made']
    choices, cast, changes = made['choices'], made['cast'], None
    if kinds.is_qwen3(Path(original)):
        changes = {**choices.get('changes', {}), 'seed': choices.get('seed', 0)}
    source = kinds.open_source(original, changes)
    if cast:
        source = dataclasses.replace(source, tensors=_in_dtype(source, cast))
    return reference.compare(source, Path(directory), cast=bool(cast))


# -------------------------------------------------------------------------------- the loop


def _run(tensors, sink, done, journal, certify, progress) -> dict[str, dict]:
    """{tensor: what the journal says of it}, after every one is in the sink."""
    total = _bytes(tensors)
    tell = progress(total, sum(_size(tensors, name) for name in done))
    entries = dict(done)
    todo = [name for name in tensors.shapes if name not in done]
    small = [name for name in todo if _size(tensors, name) <= LARGE_BYTES]
    large = [name for name in todo if _size(tensors, name) > LARGE_BYTES]

    def one(name: str) -> None:
        tensor = tensors.read(name)
        sink.write(name, tensor)
        entry = {}
        if certify:
            entry = certificate.describe(tensor)
            entry['equal'] = certificate.same_bytes(tensor, sink.read(name))
        entries[name] = entry
        journal.add(name, entry)
        tell(tensor.nbytes)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(one, small))
    for name in large:
        one(name)
    return {name: entries[name] for name in tensors.shapes}


# ------------------------------------------------------------------------------ the two sides


def _sink(
    source: Source, tensors: Tensors, partial: Path, options: Options, graph: Path
) -> tuple[Tensors, sinks.Files]:
    """(where tensors are written: the other form than the source's, made or taken up again; files
    to finish once all are there)."""
    kind, (shapes, dtypes) = source.kind, (tensors.shapes, tensors.dtypes)
    if source.becomes == HUGGING_FACE:
        return sinks.hugging_face(kind, tensors, partial, options.shard_bytes, graph)
    if not (partial / '0').is_dir():
        flat = rules.flatten(kind.network.shapes)
        of = {rule.path: dtypes[rule.tensor((0,) * rule.depth)] for rule in kind.rules}
        params = {path: _Shape(tuple(x.shape), of[path]) for path, x in flat.items()}
        create(partial, params, rules.flatten(kind.network.axes), {'model': kinds.describe(source)})
    sink = OrbaxTensors(partial, kind.rules, 0)
    if not source.unused:
        return sink, ()
    names = source.unused
    others = ShardWriter(
        partial, {n: shapes[n] for n in names}, {n: dtypes[n] for n in names}, str,
        sys.maxsize, stem=UNUSED,
    )
    return Together((sink, others)), ()


def _usable(source: Source, partial: Path) -> bool:
    """Whether what an interrupted conversion left can be opened."""
    if source.becomes == HUGGING_FACE:
        return True  # files are made anew where they are not as they should be
    try:
        return bool(OrbaxTensors(partial, source.kind.rules, 0))
    except InputError:
        return False


def _identity(source: Source, tensors: Tensors, options: Options) -> dict:
    """What must be the same for an interrupted conversion to go on."""
    stats = {name: (source.path / name).stat() for name in source.weights}
    dtypes = tensors.dtypes
    described = {n: [list(shape), dtypes[n].name] for n, shape in tensors.shapes.items()}
    return {
        'source': str(source.path.resolve()), 'options': dataclasses.asdict(options),
        'files': {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
        'step': source.step, 'kind': source.kind.name, 'choices': dict(source.choices),
        'tensors': described,
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Shape:
    shape: tuple[int, ...]
    dtype: np.dtype


def _size(tensors: Tensors, name: str) -> int:
    return math.prod(tensors.shapes[name]) * np.dtype(tensors.dtypes[name]).itemsize


def _bytes(tensors: Tensors) -> int:
    return sum(_size(tensors, name) for name in tensors.shapes)


@dataclasses.dataclass(frozen=True)
class _Cast:
    """Tensors with their floating ones in another dtype.

    Attributes:
      kept: what names begin with whose dtype stays.
    """

    tensors: Tensors
    dtype: np.dtype
    kept: tuple[str, ...] = ()

    @property
    def shapes(self) -> Mapping:
        return self.tensors.shapes

    @functools.cached_property
    def dtypes(self) -> dict:
        return {name: self._of(name, dtype) for name, dtype in self.tensors.dtypes.items()}

    def read(self, name: str) -> np.ndarray:
        tensor = self.tensors.read(name)
        return tensor.astype(self._of(name, tensor.dtype), copy=False)

    def _of(self, name: str, dtype: np.dtype) -> np.dtype:
        return self.dtype if is_float(dtype) and not name.startswith(self.kept) else dtype


def _in_dtype(source: Source, name: str) -> _Cast:
    """A graph's numbers stay what its operations take."""
    graphs = tuple(part.front for part in source.kind.parts if part.suffix == codec_parts.ONNX)
    return _Cast(source.tensors, np.dtype(name), graphs)


def _check_room(target: Path, source: Source, tensors: Tensors, partial: Path) -> None:
    """Refuses a disk that is too small before anything is written; `partial` has its part."""
    taken = sum(path.stat().st_blocks * 512 for path in partial.rglob('*') if path.is_file())
    beside = [source.beside / name for name in source.files]
    beside = [file for path in beside for file in (path.rglob('*') if path.is_dir() else [path])]
    companions = sum(file.stat().st_size for file in beside if file.is_file())
    needed = _bytes(tensors) - taken + companions + SPARE_BYTES
    if source.becomes == HUGGING_FACE:  # files that are written once their tensors are on disk
        needed += sum(
            _size(tensors, name) for part in source.kind.parts for name in tensors.shapes
            if part.suffix != codec_parts.SAFETENSORS and name.startswith(part.front)
        )
    parent = next(p for p in target.parents if p.exists())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise InputError(
            f'{target}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free in '
            f'{parent}; free space or name a place on another disk'
        )


def _copy_companions(source: Source, partial: Path, tensors: Tensors, options: Options) -> None:
    """Configuration, text tokenizer and what else lies beside the weights."""
    for name in source.files:
        path, copy = source.beside / name, partial / name
        copy.parent.mkdir(exist_ok=True, parents=True)
        if path.is_dir():
            shutil.copytree(path, copy, copy_function=shutil.copyfile, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, copy)
    for part in source.kind.parts:
        if part.trained:
            codec_folder.write_settings(partial, part)
    for name, content in source.kind.configs.items():
        made_here = not (partial / name).is_file()
        if name == CONFIG and (options.dtype or made_here):  # what the tensors are stored in
            content = with_dtype(content, tensors.dtypes[next(iter(tensors.shapes))].name)
        elif not made_here:
            continue  # as it came, to the byte
        with replacing(partial / name) as temporary:
            temporary.write_text(json_text(content, indent=2) + '\n', encoding='utf-8')


def _certificate(source: Source, entries: Mapping, options: Options) -> dict:
    settings = [*source.kind.configs, codec_folder.SETTINGS] if source.other is None else []
    paths = [*source.weights, *(name for name in source.files if name in settings)]
    roads = certificate.attention_roads(entries)
    return {
        'format': 1,
        'source': {
            'revision': certificate.revision_of(source.path),
            'files': {name: certificate.file_record(source.path / name) for name in paths},
        },
        'made': {
            'kind': source.kind.name, 'choices': dict(source.choices), 'cast': options.dtype,
            'date': datetime.date.today().isoformat(),
            'versions': {'mossjax': __version__, **checkpoint.versions()},
        },
        'coverage': {
            'tensors': len(entries), 'of_the_network': len(entries) - len(source.unused),
            'parameters': len(source.kind.rules), 'unused': list(source.unused),
            'left_behind': list(source.left),
        },
        'round_trip': {'equal': len(entries), 'differing': []},
        **({'attention': roads} if roads else {}),
        'tensors': dict(entries),
    }  # fmt: skip
