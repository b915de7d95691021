"""Tables that list recordings: CSV, TSV or JSONL with a column of files and one of texts.

Columns go by the names that data sets in the field use (Hugging Face's audiofolder, Common Voice,
DeepSpeech, ...), in any case. A table without a header has the file in its first column and its
words in its last, as LJSpeech. Files are named relative to the table, or by the end of their path,
with or without suffix.
"""

from collections.abc import Iterable, Iterator, Sequence
import csv
import dataclasses
import io
import os
from pathlib import Path

from mossjax.data.drafts import Reject
from mossjax.errors import InputError
from mossjax.infer.formats.names import SUFFIXES
from mossjax.values import parse_json

AUDIO = frozenset(f'.{suffix}' for suffix in SUFFIXES)
TABLES = ('.csv', '.tsv')
METADATA = ('metadata.csv', 'metadata.tsv', 'metadata.jsonl')
# The first that is there is taken.
FILE = (
    'file_name', 'filename', 'file', 'path', 'file_path', 'filepath', 'audio', 'audio_path',
    'audio_file', 'audio_filepath', 'audio_filename', 'audio_file_name', 'wav', 'wav_path',
    'wav_file', 'wav_filename', 'clip', 'recording', 'id',
)  # fmt: skip
TEXT = (
    'normalized_text', 'normalised_text', 'text', 'transcription', 'transcript', 'sentence',
    'normalized_transcription', 'raw_transcription', 'utterance', 'words',
)  # fmt: skip
SPEAKER = ('speaker', 'speaker_id', 'speaker_name', 'client_id', 'spk', 'voice')
BYTE_ORDER = {b'\xff\xfe': 'utf-16', b'\xfe\xff': 'utf-16'}


@dataclasses.dataclass(frozen=True)
class Said:
    """A recording and its words; `stem` is its path without suffix. No audio: words alone."""

    stem: str
    audio: str | None
    text: str = ''
    speaker: str = ''


def of_folder(root: Path, files: Iterable[str]) -> Path | None:
    """The table of a folder: the only one in it, or the only one that is called metadata.

    Raises:
      InputError: it cannot be told which.
    """
    names = [Path(file) for file in files]
    mine = [p for p in names if p.parent == root and p.suffix.lower() in TABLES]
    if len(mine) == 1:
        return mine[0]
    metadata = [p for p in names if p.name.lower() in METADATA]
    top = [p for p in metadata if p.parent == root]
    found = top or metadata or mine
    if len(found) > 1:
        listed = ', '.join(str(p.relative_to(root)) for p in found[:8])
        raise InputError(
            f'{root} has several tables ({listed}); give the path of one of them instead of the '
            "folder's"
        )
    return found[0] if found else None


def decoded(file: str | os.PathLike) -> str:
    """The text of a file, without a byte order mark.

    Raises:
      InputError: it is neither UTF-8 nor marked as UTF-16, or cannot be read.
    """
    try:
        content = Path(file).read_bytes()
        return content.decode(BYTE_ORDER.get(content[:2], 'utf-8-sig'))
    except (OSError, UnicodeError) as error:
        raise InputError(f'{file}: cannot be read as text ({error}); save it as UTF-8') from None


def read(table: Path, audio: Sequence[str]) -> tuple[list[Said], list[Reject]]:
    """What a table lists.

    Args:
      audio: absolute paths of the recordings around it.

    Raises:
      InputError: it is no table, or no column names files.
    """
    index, lines = _Index(table.parent, audio), _lines(table)
    header, first = _columns(table, next(lines, None), index)
    said, rejects = [], []
    for cells in (*first, *lines):
        named = {key: cells[at].strip() for key, at in header.items() if at < len(cells)}
        if not named.get('file'):
            rejects.append(Reject('folder', ' '.join(cells)[:60], 'a line that names no file'))
            continue
        found = index.find(named['file'])
        if len(found) > 1:
            rejects.append(Reject('folder', named['file'], 'several files are called so'))
            continue
        path = found[0] if found else os.path.normpath(table.parent / named['file'])
        text = ' '.join(named.get('text', '').split())
        said.append(Said(os.path.splitext(path)[0], path, text, named.get('speaker', '')))
    return said, rejects


def _lines(table: Path) -> Iterator[list[str]]:
    """The cells of each line; a JSONL becomes a header and its values."""
    content = decoded(table)
    if table.suffix.lower() == '.jsonl':
        yield from _jsonl(table, content)
        return
    first = content.split('\n', 1)[0]
    mark = next((x for x in '\t|,' if x in first), ';')
    # Common Voice and LJSpeech put quotation marks into their texts as they are.
    quoting = csv.QUOTE_NONE if mark in '\t|' else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(content, newline=''), delimiter=mark, quoting=quoting)
    try:
        yield from (cells for cells in reader if any(cell.strip() for cell in cells))
    except csv.Error as error:
        raise InputError(f'{table}:{reader.line_num}: {error}; export the table again') from None


def _jsonl(table: Path, content: str) -> Iterator[list[str]]:
    lines = []
    for number, line in enumerate(content.split('\n'), 1):
        if not line.strip():
            continue
        fields = parse_json(line, f'{table}:{number}', 'Write one object a line.')
        if not isinstance(fields, dict):
            raise InputError(
                f'{table}:{number}: expected an object {{"file_name": ..., "text": ...}}'
            )
        lines.append(fields)
    names = list(dict.fromkeys(name for line in lines for name in line))
    yield names
    for line in lines:
        yield [value if isinstance(value := line.get(name), str) else '' for name in names]


def _columns(
    table: Path, first: list[str] | None, index: '_Index'
) -> tuple[dict[str, int], list[list[str]]]:
    """({'file': 0, 'text': 2, ...}, lines to read beside those that follow)."""
    if not first:
        raise InputError(f'{table} is empty; list recordings in it')
    names = [name.strip().lower().replace(' ', '_').replace('-', '_') for name in first]
    chosen = {
        key: names.index(name)
        for key, known in (('file', FILE), ('text', TEXT), ('speaker', SPEAKER))
        if (name := next((x for x in known if x in names), None)) is not None
    }
    if 'file' in chosen:
        return chosen, []
    if index.find(first[0].strip()):
        return {'file': 0, **({'text': len(first) - 1} if len(first) > 1 else {})}, [first]
    raise InputError(
        f'{table}: no column names the recordings; its columns are {", ".join(first)[:200]}. Call '
        'that column file_name and the one with the words text'
    )


class _Index:
    """Finds recordings by the end of their path, with or without suffix."""

    def __init__(self, folder: Path, audio: Sequence[str]):
        self._folder, self._by_name = folder, {}
        for path in audio:
            base = os.path.basename(path)
            for name in {base, os.path.splitext(base)[0]}:
                self._by_name.setdefault(name, []).append(path)

    def find(self, name: str) -> list[str]:
        """Absolute paths: the one relative to the table if it exists, or all that end so."""
        for named in (name, name.replace('\\', '/')):
            exact = os.path.normpath(self._folder / named)
            if named and os.path.isfile(exact):
                return [exact]
            alike = self._by_name.get(os.path.basename(named), [])
            if found := [path for path in alike if _ends_with(path, named)]:
                return found
        return []


def _ends_with(path: str, name: str) -> bool:
    return any(x.endswith(f'/{name}') for x in (path, os.path.splitext(path)[0]))
