"""Which lines of a dialogue name a recording, and which are words.

A line names a recording if, read as it stands, as a shell would (quotes, backslashes) or as a
file:// URL, which is how terminals write a file that is dropped on them, it

- ends in the suffix of an audio file with a name before it, in any case: q.wav, 'my q.MP3', or
- starts as a path does (/, ./, ../, ~/, file://) and is one name, or the name of a file.

Everything else is words: "what is a .wav file", "is mp3 better than wav", "open q.wav, please."
What looks like a recording and is none is refused, and so is a path to one among words, for the
model would answer the name: a sentence that ends in a file's name needs its full stop.
"""

import os
import pathlib
import re
import shlex
import urllib.parse

from mossjax import paths
from mossjax.errors import InputError
from mossjax.infer.formats.names import SUFFIXES

_AUDIO = re.compile(rf'[^\s/]\.({"|".join(SUFFIXES)})$', re.IGNORECASE)
_START = re.compile(r'(/|\.{1,2}/|~[\w.-]*/)\S')
_URL = re.compile(r'file:(?://[^/\s]*)?(/.*)', re.IGNORECASE)


def recording(line: str) -> pathlib.Path | None:
    """The recording that a line names, None if it is words.

    Raises:
      InputError: it names one that is not there or cannot be read, or more than one.
    """
    line = line.strip()
    pieces = [_local(piece) for piece in _split(line)]
    readings = [_local(line), *pieces] if len(pieces) == 1 else [_local(line)]
    for reading in readings:
        if _named(reading) and _is_file(reading):
            return paths.file_to_read(reading, 'recording')
    name, shown = readings[-1], paths.printable(line[:80])
    if len(pieces) > 1 and all(map(_named, pieces)) and any(map(_is_file, pieces)):
        raise InputError(f'{shown} names {len(pieces)} files; give one recording a line')
    if any(_START.match(p) and _AUDIO.search(p) and _is_file(p) for p in pieces):
        raise InputError(f'{shown} has a recording among words; give it a line of its own')
    if len(pieces) > 1 and _AUDIO.search(name) and not _START.match(name):
        raise InputError(
            f'{shown} ends as the name of a recording does, and there is no such file; give its '
            'name alone, and end words with a full stop or a question mark'
        )
    if _AUDIO.search(name) or _START.match(name) and len(pieces) == 1:
        return paths.file_to_read(name, 'recording')  # says what is wrong with it
    return None


def _split(line: str) -> list[str]:
    """The words of a line as a shell reads them; the line itself where its quotes do not match."""
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


def _local(text: str) -> str:
    """The path in a file:// URL; any other text as it is."""
    found = _URL.fullmatch(text)
    return urllib.parse.unquote(found.group(1), errors='surrogateescape') if found else text


def _named(text: str) -> bool:
    return bool(_AUDIO.search(text) or _START.match(text))


def _is_file(text: str) -> bool:
    path = os.path.expanduser(text)
    return os.path.exists(path) and not os.path.isdir(path)

