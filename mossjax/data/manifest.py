"""The training manifest: a JSONL file, one recording or one dialogue a line.

A recording:

    {"audio": "wav/0001.wav", "text": "the answer is seven", "speaker": "slt",
     "times": [["dh", 0.08], ["ax", 0.13], ...], "words": [["the", 0.13], ...]}

Only `audio` is required. `times` are frame labels (phones) and `words` word borders, both as
[label, end in seconds] with ends that never decrease; the first label starts at 0. A dialogue:

    {"turns": [{"role": "user", "audio": "wav/0001.wav"}, {"role": "assistant", "text": "seven"}]}

where every turn has a role (system, user, assistant) and exactly one of `audio` (a path), `text`
or `codes` (speech tokens, a list of integers). Paths are relative to the manifest. Keys we do not
know are kept in `extra`, so that a manifest can carry splits, groups or facts of its own.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from mossjax.errors import InputError
from mossjax.files import replacing
from mossjax.values import COUNT, NUMBER, parse_json, shown

Labels = tuple[tuple[str, float], ...]  # (label, end in seconds)
ROLES = ('system', 'user', 'assistant')
CONTENTS = ('audio', 'text', 'codes')


@dataclasses.dataclass(frozen=True)
class Recording:
    """One line with `audio`. `audio` is an absolute path once read."""

    audio: str
    text: str = ''
    speaker: str = ''
    times: Labels = ()
    words: Labels = ()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn of a dialogue; exactly one of audio, text, codes is not None."""

    role: str
    audio: str | None = None
    text: str | None = None
    codes: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """One line with `turns`."""

    turns: tuple[Turn, ...]
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_manifest(path: str | os.PathLike) -> list[Recording | Dialogue]:
    """Reads and checks a whole manifest.

    Raises:
      InputError: naming file, line and key of the first fault. Whether the audio files exist is
        not checked here; see `check_audio`.
    """
    path = Path(path)
    try:
        # Not splitlines: JSON strings may hold other line separators than a newline.
        lines = path.read_text(encoding='utf-8').split('\n')
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f'{path}: cannot read the manifest ({e}); give a JSONL file.') from e
    entries = [
        parse_line(line, f'{path}:{number}', path.parent)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not entries:
        raise InputError(f'{path}: the manifest is empty; write one JSON object a line.')
    return entries


def read_recordings(path: str | os.PathLike) -> list[Recording]:
    """`read_manifest` for a file that must hold recordings only."""
    entries = read_manifest(path)
    for i, entry in enumerate(entries, 1):
        if not isinstance(entry, Recording):
            raise InputError(
                f'{path}: entry {i} is a dialogue; this job needs lines with an "audio" key.'
            )
    return entries


def check_audio(entries: Iterable[Recording | Dialogue]) -> None:
    """Raises InputError that lists audio files which do not exist, before any long work."""
    paths = {p for entry in entries for p in audio_paths(entry)}
    missing = sorted(p for p in paths if not os.path.exists(p))
    if missing:
        raise InputError(
            f'{len(missing)} of {len(paths)} audio files do not exist, first: '
            f'{", ".join(missing[:3])}. Paths in a manifest are relative to its own folder.'
        )


def audio_paths(entry: Recording | Dialogue) -> list[str]:
    """The audio files that an entry names."""
    if isinstance(entry, Recording):
        return [entry.audio]
    return [turn.audio for turn in entry.turns if turn.audio is not None]


def write_manifest(path: str | os.PathLike, entries: Iterable[Recording | Dialogue]) -> None:
    """Writes a manifest so that a reader sees the old file or the whole new one, never half.

    Audio below the manifest's folder is written relative to it, so that the folder can move.
    """
    path = Path(path)
    root = path.parent.resolve()
    lines = [json.dumps(to_json(e, root), ensure_ascii=False) + '\n' for e in entries]
    with replacing(path) as temporary:
        temporary.write_text(''.join(lines), encoding='utf-8')


def to_json(entry: Recording | Dialogue, root: Path) -> dict[str, Any]:
    """The line of an entry as a dict, audio relative to `root` where it lies below it."""
    if isinstance(entry, Dialogue):
        turns = [
            {'role': turn.role, **{k: _shown(k, getattr(turn, k), root) for k in _given(turn)}}
            for turn in entry.turns
        ]
        return {'turns': turns, **entry.extra}
    line = {'audio': _shown('audio', entry.audio, root)}
    for key in ('text', 'speaker'):
        if getattr(entry, key):
            line[key] = getattr(entry, key)
    for key in ('times', 'words'):
        if getattr(entry, key):
            line[key] = [list(pair) for pair in getattr(entry, key)]
    return {**line, **entry.extra}


def _given(turn: Turn) -> list[str]:
    return [key for key in CONTENTS if getattr(turn, key) is not None]


def _shown(key: str, value: Any, root: Path) -> Any:
    if key == 'codes':
        return list(value)
    if key == 'audio' and Path(value).is_relative_to(root):
        return str(Path(value).relative_to(root))
    return value


def parse_line(line: str, where: str, root: Path = Path('.')) -> Recording | Dialogue:
    """One JSONL line to an entry; `where` (file:line) goes into the errors."""
    fields = parse_json(line, where, 'Write one object a line.')
    if not isinstance(fields, dict):
        raise InputError(f'{where}: a {type(fields).__name__}, expected an object {{...}}.')
    if ('audio' in fields) == ('turns' in fields):
        raise InputError(f'{where}: needs either "audio" (a recording) or "turns" (a dialogue).')
    parse = _parse_dialogue if 'turns' in fields else _parse_recording
    return parse(fields, where, root)


def _parse_recording(fields: dict, where: str, root: Path) -> Recording:
    known = {f.name for f in dataclasses.fields(Recording)} - {'extra'}
    return Recording(
        audio=_path(fields['audio'], f'{where}:audio', root),
        text=_text(fields.get('text', ''), f'{where}:text'),
        speaker=_text(fields.get('speaker', ''), f'{where}:speaker'),
        times=_labels(fields.get('times', []), f'{where}:times'),
        words=_labels(fields.get('words', []), f'{where}:words'),
        extra={key: value for key, value in fields.items() if key not in known},
    )


def _parse_dialogue(fields: dict, where: str, root: Path) -> Dialogue:
    turns = fields['turns']
    if not isinstance(turns, list) or not turns:
        raise InputError(f'{where}:turns: expected a list with at least one turn.')
    return Dialogue(
        turns=tuple(_parse_turn(turn, f'{where}:turns[{i}]', root) for i, turn in enumerate(turns)),
        extra={key: value for key, value in fields.items() if key != 'turns'},
    )


def _parse_turn(turn: Any, where: str, root: Path) -> Turn:
    if not isinstance(turn, dict):
        raise InputError(f'{where}: a {type(turn).__name__}, expected {{"role": ..., ...}}.')
    if turn.get('role') not in ROLES:
        raise InputError(f'{where}.role: {turn.get("role")!r}, expected one of {", ".join(ROLES)}.')
    given = [key for key in CONTENTS if key in turn]
    unknown = sorted(set(turn) - {'role', *CONTENTS})
    if len(given) != 1 or unknown:
        raise InputError(
            f'{where}: has keys {sorted(turn)}; besides "role" give exactly one of '
            f'{", ".join(CONTENTS)}.'
        )
    key, value = given[0], turn[given[0]]
    parse = {'audio': lambda v, w: _path(v, w, root), 'text': _text, 'codes': _codes}[key]
    return Turn(role=turn['role'], **{key: parse(value, f'{where}.{key}')})


def _path(value: Any, where: str, root: Path) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f'{where}: {value!r}, expected the path of an audio file.')
    return os.path.normpath(os.path.join(os.path.abspath(root), value))


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f'{where}: a {type(value).__name__}, expected a string.')
    return value


def _codes(value: Any, where: str) -> tuple[int, ...]:
    fits = isinstance(value, list) and all(code in COUNT for code in value)
    if not fits or not value:
        raise InputError(f'{where}: expected a list of speech tokens (integers from 0), not empty.')
    return tuple(value)


def _labels(value: Any, where: str) -> Labels:
    if not isinstance(value, list):
        raise InputError(f'{where}: expected [[label, end seconds], ...], got {value!r:.40}.')
    previous = 0.0
    for i, pair in enumerate(value):
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise InputError(f'{where}[{i}]: {pair!r}, expected [label, end seconds].')
        if pair[1] not in NUMBER:
            raise InputError(f'{where}[{i}]: end {shown(pair[1])} is not a number of seconds.')
        if pair[1] < previous:
            raise InputError(
                f'{where}[{i}]: ends at {pair[1]} s, before the previous label ({previous} s); '
                'sort the labels and give the END of each.'
            )
        previous = pair[1]
    return tuple((label, float(end)) for label, end in value)
