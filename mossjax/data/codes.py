"""The codes store: speech tokens of recordings, several shifted and noisy versions of each.

A shift of half a code changes about half of the codes, so the language model should meet several
versions of a recording. A store is a JSONL file, one version of one recording a line,

    {"path": "wav/0001.wav", "version": 0, "offset": 0.0, "codes": [...], "seconds": 1.3,
     "bytes": 41644}

with `path` relative to the file, `offset` the seconds of silence put before the recording and
`bytes` the size of its file; version 0 is the recording as it is. What decides its content is kept
beside it in `<name>.settings.json`. A job that was interrupted goes on where it stopped; a
recording whose file has another size by then is tokenized again, and its last line counts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import concurrent.futures
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Protocol
import zlib

from absl import logging
import numpy as np

from mossjax import values
from mossjax.data.clips import (
    AUGMENT,
    CLEAN,
    READERS,
    Clips,
    Load,
    Perturb,
    length,
    load_audio,
    with_lengths,
)
from mossjax.data.manifest import Recording
from mossjax.errors import InputError, refusal
from mossjax.files import cut_torn_line, read_json, replacing

RATE = 16_000  # Hz, of the tokenizer
GROUP_SECONDS = 30 * 60  # of audio in memory at a time: 115 MB


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
        found: dict[str, dict[int, Version]] = {}
        for line in _complete_lines(path):
            version = Version(line['codes'], line['offset'])
            found.setdefault(_absolute(line['path'], path), {})[line['version']] = version
        ordered = {name: [x[i] for i in sorted(x)] for name, x in found.items()}
        return cls(ordered, str(path))

    def __len__(self) -> int:
        return len(self._versions)

    def versions(self, audio: str) -> list[Version]:
        """All versions, the unperturbed one first. Raises InputError if there are none."""
        if audio not in self._versions:
            raise InputError(f'{self._name}: no codes of {audio}; tokenize it with the others.')
        return self._versions[audio]


def tokenize_recordings(
    tokenizer: Encoder,
    recordings: Sequence[Recording],
    path: str | os.PathLike,
    *,
    versions: int | Mapping[str, int] = 8,
    seed: int = 0,
    perturb: Perturb = AUGMENT,
    fingerprint: str = '',
    batch_size: int = 32,
    load: Load = load_audio,
    refused: Callable[[str, InputError], None] | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> CodesStore:
    """Tokenizes several versions of every recording into a store; goes on if it exists.

    A version depends on (seed, path as stored, number) alone, not on order or interruptions.

    Args:
      versions: how many of each, or of each by its path.
      fingerprint: names the tokenizer's weights (a hash); a store made by others is refused.
      refused: told of each audio file that is missing or bad, which is then left out (once for
        every version of it).
      advance: told how many versions have been done, as they are.

    Raises:
      InputError: the store at `path` has other settings; or, once all others are in it, audio
        files were missing or bad, with the reason of each, and there is nobody to be told.
    """
    path = Path(path)
    settings = {
        'seed': seed, 'fingerprint': fingerprint, 'perturb': dataclasses.asdict(perturb)
    }  # fmt: skip
    _check_settings(path, settings)
    done = {
        (_absolute(x['path'], path), x['version']): x.get('bytes') for x in _repaired_lines(path)
    }
    refusals: dict[str, str] = {}  # each version of a recording says the same

    def tell(audio: str, error: InputError) -> None:
        refusals[audio] = str(error)
        if refused is not None:
            refused(audio, error)

    clips = _opened(recordings, load, tell)
    # Alike lengths together: less padding, fewer shapes.
    clips.sort(key=lambda clip: clip.lengths[0])

    def count(audio: str) -> int:
        return versions if isinstance(versions, int) else versions[audio]

    def is_done(audio: str, version: int) -> bool:
        size = done.get((audio, version), 'not yet')
        return size is None or size == os.path.getsize(audio)  # older stores do not say

    jobs = [
        (clip, version)
        for clip in clips
        for version in range(count(_audio(clip)))
        if not is_done(_audio(clip), version)
    ]
    whole = sum(count(_audio(clip)) for clip in clips)
    logging.info('%s: %d of %d versions to tokenize', path, len(jobs), whole)
    advance(whole - len(jobs))

    def heard(clip: Clips, version: int) -> tuple[dict[str, Any], np.ndarray] | None:
        """A line without its codes, and the audio to tokenize."""
        name = os.path.relpath(_audio(clip), path.parent.resolve())
        rng = np.random.default_rng([seed, zlib.crc32(os.fsencode(name)), version])
        try:
            wav = clip.read(0)
        except InputError as error:
            tell(_audio(clip), error)
            return None
        wav, offset = (perturb if version else CLEAN)(rng, wav, RATE)
        line = {'path': name, 'version': version, 'offset': offset / RATE}
        size = os.path.getsize(_audio(clip))
        return {**line, 'seconds': len(wav) / RATE, 'bytes': size}, wav

    with path.open('a', encoding='utf-8') as store:
        for group in _groups(jobs, batch_size):
            part = [one for job in group if (one := heard(*job)) is not None]
            found = tokenizer.encode([wav for _, wav in part]) if part else []
            for (line, _), codes in zip(part, found, strict=True):
                store.write(json.dumps({**line, 'codes': np.asarray(codes).tolist()}) + '\n')
            store.flush()
            advance(len(group))
    if refusals and refused is None:
        raise refusal(
            list(refusals.values()), len(recordings), f'recordings are not in {path}; the others '
            'are. Mend these and run it again, or take them out of the manifest'
        )
    return CodesStore.open(path)


def _groups(jobs: list[tuple[Clips, int]], most: int) -> Iterator[list[tuple[Clips, int]]]:
    """Runs of at most `most` jobs and GROUP_SECONDS of audio, one job at least."""
    group, total = [], 0
    for clip, version in jobs:
        length = int(clip.lengths[0])
        if group and (len(group) == most or total + length > GROUP_SECONDS * RATE):
            yield group
            group, total = [], 0
        group.append((clip, version))
        total += length
    if group:
        yield group


def _opened(recordings: Sequence[Recording], load: Load, tell: Callable) -> list[Clips]:
    """Each recording by itself, those that can be opened."""

    def opened(recording: Recording) -> int | InputError:
        try:
            return length(recording, RATE)
        except InputError as error:
            return error

    clips = []
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        for recording, found in zip(recordings, pool.map(opened, recordings), strict=True):
            if isinstance(found, InputError):
                tell(recording.audio, found)
            else:
                clips.append(with_lengths([recording], [found], RATE, load))
    return clips


def _audio(clip: Clips) -> str:
    return clip.recordings[0].audio


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
    """Parsed lines, codes as int32 (n,); a last line without its newline was torn by an
    interruption and is left out."""
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
    fields['codes'] = _as_codes(codes, where, remedy)
    return fields


def _as_codes(codes: list, where: str, remedy: str) -> np.ndarray:
    """int32 (n,). All at once: a store has 45,000 codes for every hour of speech."""
    array = np.asarray(codes) if all(type(code) is int for code in codes) else None
    if array is None or array.size and not 0 <= array.min() <= array.max() <= values.LARGEST:
        for i, code in enumerate(codes):
            values.number(code, f'{where}: codes[{i}]', values.COUNT, remedy)
    return np.asarray(codes, np.int32)


def _repaired_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines, after cutting a torn last one off the file."""
    if not path.exists():
        return []
    if cut_torn_line(path):
        logging.warning('%s: the last line is torn; it is tokenized again', path)
    return list(_complete_lines(path))


def _absolute(name: str, store: Path) -> str:
    return os.path.normpath(os.path.join(store.parent.resolve(), name))
