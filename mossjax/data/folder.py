"""A folder of recordings to manifest entries.

What is said in them comes from files of the same name (`a.wav` with `a.txt`), or from a table that
lists them: see `data.tables`. Recordings called NAME.user.EXT and NAME.assistant.EXT are the two
turns of a dialogue; longer ones number their turns, NAME.1.user.EXT, NAME.2.assistant.EXT, ... Of a
turn there may be the recording, the text, or both.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import os
from pathlib import Path
import re

from mossjax.data import tables
from mossjax.data.drafts import Reject
from mossjax.data.manifest import Dialogue, Entry, Recording, Turn
from mossjax.data.tables import AUDIO, Said
from mossjax.errors import InputError
from mossjax.models.lm.dialogue import ROLES

TEXTS = ('.txt', '.lab', '.normalized.txt')  # of a recording, beside it
TRANSCRIPTS = '.trans.txt'  # of many: a line has the name of a recording, a space, its words
TURN = re.compile(
    r'(?P<name>.+?)(\.(?P<number>\d+))?\.(?P<role>user|assistant|system|question|answer)', re.I
)
ALSO = {'question': 'user', 'answer': 'assistant'}


@dataclasses.dataclass(frozen=True)
class Found:
    """What a folder holds.

    Attributes:
      root: the folder; paths of entries are below it.
      entries: recordings and dialogues, sorted by path.
      rejects: files that are neither.
    """

    root: Path
    entries: list[Entry]
    rejects: list[Reject]


def read_folder(folder: str | os.PathLike) -> Found:
    """Everything in a folder and below it, or what a table in it lists.

    Args:
      folder: the folder, or the table itself.

    Raises:
      InputError: there are no recordings, or it is not clear what is said in them.
    """
    path = Path(folder)
    table = None if path.is_dir() else path
    root = Path(os.path.abspath(path.parent if table else path))
    files = _files(root)
    audio = [file for file in files if _suffix(file) in AUDIO]
    table = table or tables.of_folder(root, files)
    said, rejects = tables.read(table, audio) if table else _by_name(files, audio)
    entries, odd = _entries(said)
    if not entries:
        why = f': {odd[0].name}: {odd[0].reason}' if odd else ''
        raise InputError(
            f'{path} has no recordings that can be used{why}. Put WAV, FLAC, OGG or MP3 files '
            'there, what is said in a.wav into a.txt beside it or into a table metadata.csv with '
            'columns file_name and text'
        )
    return Found(root, entries, [*rejects, *odd])


def _files(root: Path) -> list[str]:
    """Absolute paths, hidden ones left out; links are followed, each folder is visited once."""
    found, seen = [], {os.path.realpath(root)}
    for here, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(
            f for f in folders
            if not f.startswith('.') and os.path.realpath(os.path.join(here, f)) not in seen
        )  # fmt: skip
        seen |= {os.path.realpath(os.path.join(here, f)) for f in folders}
        found += [os.path.join(here, name) for name in names if not name.startswith('.')]
    return sorted(found)


def _suffix(file: str) -> str:
    return os.path.splitext(file)[1].lower()


def _stem(file: str) -> str:
    return os.path.splitext(file)[0]


# ------------------------------------------------------------------------------ by file names


def _by_name(files: list[str], audio: list[str]) -> tuple[list[Said], list[Reject]]:
    there, lists = set(files), {}
    for file in files:
        if file.endswith(TRANSCRIPTS):
            lists |= _transcripts(file)
    said, used = [], set()
    for file in audio:
        stem = _stem(file)
        beside = next((stem + end for end in TEXTS if stem + end in there), None)
        used.add(beside)
        said.append(Said(stem, file, _text(beside) if beside else lists.get(stem, '')))
    rejects = []
    for file in files:
        if file in used or _suffix(file) != '.txt' or file.endswith(TRANSCRIPTS):
            continue
        if TURN.fullmatch(os.path.basename(_stem(file))):
            said.append(Said(_stem(file), None, _text(file)))  # a turn in writing
        else:
            rejects.append(Reject('folder', file, 'a text without a recording of that name'))
    return said, rejects


def _transcripts(file: str) -> dict[str, str]:
    folder, lines = os.path.dirname(file), tables.decoded(file).splitlines()
    pairs = (line.strip().partition(' ') for line in lines if line.strip())
    return {os.path.join(folder, name): ' '.join(words.split()) for name, _, words in pairs}


def _text(file: str) -> str:
    return ' '.join(tables.decoded(file).split())


# ------------------------------------------------------------------------- recordings, dialogues


def _entries(said: Iterable[Said]) -> tuple[list[Entry], list[Reject]]:
    """Turns of one name together, everything else by itself."""
    entries: dict[str, Entry | list[tuple[tuple, Said]]] = {}
    rejects = []
    for one in sorted(said, key=lambda x: x.stem):
        folder, base = os.path.split(one.stem)
        turn = TURN.fullmatch(base)
        if turn is None:
            entries[one.audio] = Recording(one.audio, one.text, one.speaker)
            continue
        role = turn['role'].lower()
        role = ALSO.get(role, role)
        place = (int(turn['number'] or 0), ROLES.index(role))
        entries.setdefault(os.path.join(folder, f'{turn["name"]}.'), []).append((place, one))
    found = []
    for name, entry in entries.items():
        if not isinstance(entry, list):
            found.append(entry)
        elif len({place for place, _ in entry}) < len(entry):
            rejects.append(Reject('folder', f'{name}*', 'one turn of a dialogue is there twice'))
        else:
            found.append(_dialogue(sorted(entry, key=lambda x: x[0])))
    return found, rejects


def _dialogue(turns: Sequence[tuple[tuple, Said]]) -> Dialogue:
    return Dialogue(
        tuple(
            Turn(ROLES[role], audio=one.audio, text=one.text or None if one.audio else one.text)
            for (_, role), one in turns
        )
    )
