"""The codes store: speech tokens of recordings, several shifted and noisy versions of each.

A shift of half a code changes about half of the codes, so the language model should meet several
versions of a recording. A store is a JSONL file, one version of one recording a line,

    {"path": "wav/0001.wav", "version": 0, "offset": 0.0, "codes": [...], "seconds": 1.3}

with `path` relative to the file and `offset` the seconds of silence put before the recording;
version 0 is the recording as it is. What decides its content is kept beside it in
`<name>.settings.json`. A job that was interrupted goes on where it stopped.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Protocol
import zlib

from absl import logging
import numpy as np

from mossjax import values
from mossjax.data.clips import AUGMENT, CLEAN, Load, Perturb, clips_on_disk, load_audio
from mossjax.data.manifest import Recording
from mossjax.errors import InputError
from mossjax.files import read_json, replacing

RATE = 16_000  # Hz, of the tokenizer


class Encoder(Protocol):
    """What is needed of a `SpeechTokenizer`."""

    def encode(self, wavs: Sequence[np.ndarray]) -> Sequence[np.ndarray]: ...


@dataclasses.dataclass(frozen=True)
class Version:
    """codes int32 (n,), seconds of silence before the recording."""

    codes: np.ndarray
    offset: float = 0.0


class CodesStore:
    """Versions of codes by the path of the recording."""

    def __init__(self, versions: dict[str, list[Version]], name: str = 'codes'):
        self._versions, self._name = versions, name

    @classmethod
    def open(cls, path: str | os.PathLike) -> 'CodesStore':
        """Reads a store, or any JSONL with `path` and `codes`.

        Raises:
          InputError: there is no such file, or a line is not as described.
        """
        path = Path(path)
        if not path.exists():
            raise InputError(f'{path}: no codes; tokenize the recordings first.')
        found: dict[str, list[tuple[int, Version]]] = {}
        for line in _complete_lines(path):
            version = Version(np.asarray(line['codes'], np.int32), float(line['offset']))
            found.setdefault(_absolute(line['path'], path), []).append((line['version'], version))
        ordered = {k: [v for _, v in sorted(x, key=lambda y: y[0])] for k, x in found.items()}
        return cls(ordered, str(path))

    def __len__(self) -> int:
        return len(self._versions)

    def versions(self, audio: str) -> list[Version]:
        """All versions, the unperturbed one first. Raises InputError if there are none."""
        if audio not in self._versions:
            raise InputError(f'{self._name}: no codes of {audio}; tokenize it with the others.')
        return self._versions[audio]

    def draw(self, audio: str, rng: np.random.Generator) -> Version:
        """One version, drawn by `rng`."""
        versions = self.versions(audio)
        return versions[rng.integers(len(versions))]


def tokenize_recordings(
    tokenizer: Encoder,
    recordings: Sequence[Recording],
    path: str | os.PathLike,
    *,
    versions: int = 8,
    seed: int = 0,
    perturb: Perturb = AUGMENT,
    fingerprint: str = '',
    batch_size: int = 32,
    load: Load = load_audio,
) -> CodesStore:
    """Tokenizes `versions` versions of every recording into a store; goes on if it exists.

    A version depends on (seed, path as stored, number) alone, not on order or interruptions.

    Args:
      fingerprint: names the tokenizer's weights (a hash); a store made by others is refused.

    Raises:
      InputError: the store at `path` has other settings, or an audio file is missing or bad.
    """
    path = Path(path)
    settings = {
        'seed': seed, 'fingerprint': fingerprint, 'perturb': dataclasses.asdict(perturb)
    }  # fmt: skip
    _check_settings(path, settings)
    done = {(_absolute(x['path'], path), x['version']) for x in _repaired_lines(path)}
    clips = clips_on_disk(recordings, RATE, load)
    # Alike lengths together: less padding, fewer shapes.
    order = np.argsort(clips.lengths, kind='stable').tolist()
    jobs = [
        (i, version)
        for i in order
        for version in range(versions)
        if (recordings[i].audio, version) not in done
    ]
    logging.info('%s: %d of %d versions to tokenize', path, len(jobs), versions * len(recordings))

    def heard(i: int, version: int) -> tuple[dict[str, Any], np.ndarray]:
        """A line without its codes, and the audio to tokenize."""
        name = os.path.relpath(recordings[i].audio, path.parent.resolve())
        rng = np.random.default_rng([seed, zlib.crc32(name.encode()), version])
        wav, offset = (perturb if version else CLEAN)(rng, clips.read(i), RATE)
        line = {'path': name, 'version': version, 'offset': offset / RATE}
        return {**line, 'seconds': len(wav) / RATE}, wav

    with path.open('a', encoding='utf-8') as store:
        for start in range(0, len(jobs), batch_size):
            part = [heard(*job) for job in jobs[start : start + batch_size]]
            found = tokenizer.encode([wav for _, wav in part])
            for (line, _), codes in zip(part, found, strict=True):
                store.write(json.dumps({**line, 'codes': np.asarray(codes).tolist()}) + '\n')
            store.flush()
    return CodesStore.open(path)


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    beside = path.with_name(path.name + '.settings.json')
    if beside.exists():
        found = read_json(beside)
        if found != settings:
            raise InputError(
                f'{path} was made with {found}, asked for {settings}; delete it or choose another '
                'file.'
            )
        return
    if path.exists():
        raise InputError(f'{path} exists without {beside.name}; choose another file.')
    with replacing(beside) as temporary:
        temporary.write_text(json.dumps(settings))


def _complete_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Parsed lines; a last line without its newline was torn by an interruption and left out."""
    with path.open('rb') as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b'\n'):
                return
            yield _checked(line, f'{path}:{number}')


def _checked(line: bytes, where: str) -> dict[str, Any]:
    """The object of a line, `version` and `offset` included where they are left out."""
    remedy = 'tokenize the recordings anew'
    fields = values.parse_json(line, where, f'{remedy.capitalize()}.')
    codes = fields.get('codes') if isinstance(fields, dict) else None
    if not isinstance(codes, list) or not isinstance(fields.get('path'), str):
        raise InputError(f'{where}: expected {{"path": ..., "codes": [...]}}; {remedy}')
    fields = {'version': 0, 'offset': 0.0, **fields}
    for name, accepted in (('version', values.COUNT), ('offset', values.NOT_NEGATIVE)):
        values.number(fields[name], f'{where}: {name}', accepted, remedy)
    for i, code in enumerate(codes):
        values.number(code, f'{where}: codes[{i}]', values.COUNT, remedy)
    return fields


def _repaired_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines, after cutting a torn last one off the file."""
    if not path.exists():
        return []
    whole = path.read_bytes()
    end = whole.rfind(b'\n') + 1
    if end < len(whole):
        logging.warning('%s: the last line is torn; it is tokenized again', path)
        os.truncate(path, end)
    return list(_complete_lines(path))


def _absolute(name: str, store: Path) -> str:
    return os.path.normpath(os.path.join(store.parent.resolve(), name))
