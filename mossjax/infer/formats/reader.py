"""The recordings of a file: found by a survey, decoded by whoever reads them whole."""

from collections.abc import Iterator

from mossjax.infer.formats import (
    aiff,
    ffmpeg,
    flac,
    mpeg,
    mpeg_frames,
    ogg,
    others,
    sndfile,
    wav,
)
from mossjax.infer.formats.block import Block, Header
from mossjax.infer.formats.view import Part, Survey, View

MOST_TAGS = 100


def survey(view: View, name: str) -> Survey:
    """What the bytes of an audio file hold.

    Args:
      name: of the file, for messages.

    Raises:
      InputError: its header and its bytes contradict each other so that nobody can say what is
        sound.
    """
    start = 0
    for _ in range(MOST_TAGS):
        start += mpeg_frames.id3_size(view.at(start, 10))
    if start:  # a tag, in front of whatever format
        view = view.part(start, view.size)
    found = _of_format(view)(view, name)
    return Survey(tuple(part.moved(start) for part in found.parts), found.remarks)


def _of_format(view: View):
    magic = view.at(0, 12)
    if wav.MAGIC.match(magic):
        return wav.wav
    if magic.startswith(b'FORM') and magic[8:] in (b'AIFF', b'AIFC'):
        return aiff.aiff
    if magic.startswith(b'caff'):
        return aiff.caf
    if magic.startswith((b'.snd', b'dns.')):
        return aiff.au
    if flac.STREAM.match(magic):
        return flac.flac
    if ogg.CAPTURE.search(view.at(0, 1024)):
        return ogg.ogg
    if mpeg_frames.looks_like(view):
        return mpeg.mpeg
    return others.split


def header(view: View, part: Part, name: str) -> Header | None:
    """What one recording of a file holds, without decoding it; None if nothing else tells.

    Raises:
      InputError: it is damaged.
    """
    if part.ffmpeg:
        return None
    file, _ = sndfile.opened(view.part(part.start, part.stop, part.head), part)
    if file is None:
        return None
    with file:
        frames = sndfile.count(file, part, name)
        return None if frames is None else Header(file.samplerate, file.channels, frames)


def blocks(view: View, part: Part, name: str) -> Iterator[Block]:
    """The samples of one recording of a file.

    Raises:
      InputError: no decoder that is installed reads it, or it is damaged.
    """
    view, why = view.part(part.start, part.stop, part.head), part.ffmpeg
    if not why:
        file, why = sndfile.opened(view, part)
        if file is not None:
            with file:
                frames = sndfile.count(file, part, name)
                yield from sndfile.decode(file, part.skip, frames, name)
            return
        view.seek(0)
    yield from ffmpeg.decode(view, part.frames, name, why)
