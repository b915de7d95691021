"""Decoding by libsndfile, as a stream."""

from collections.abc import Iterator
import functools

from mossjax.errors import InputError
from mossjax.infer.formats.block import Block, by_ffmpeg, check_complete, check_format
from mossjax.infer.formats.view import Part, View

BLOCK = 1 << 18  # values read at once, of all channels
UNKNOWN = 1 << 40  # counts from here on mean that libsndfile does not know


def opened(view: View, part: Part):
    """A soundfile.SoundFile of a part; or None, and why libsndfile does not read it."""
    import soundfile

    try:
        file = _streaming()(view)
    except soundfile.LibsndfileError as error:
        return None, f'libsndfile: {error.error_string.rstrip(".")}'
    if file.format == 'MP3' and part.frames is None:  # it would go by an estimate
        file.close()
        return None, 'it is MP3 without a run of whole frames'
    return file, ''


@functools.cache
def _streaming() -> type:
    """A SoundFile that is read from its start to its end and never seeks.

    soundfile seeks after each read. Where a length is unknown, that fails; in the middle of a
    lossy stream it disturbs the decoder, and behind a gap it hides that samples are missing.
    """
    import soundfile

    class Streaming(soundfile.SoundFile):
        def seekable(self) -> bool:
            return False

    return Streaming


def count(file, part: Part, name: str) -> int | None:
    """Samples of each channel that an opened part must give, None if only decoding tells.

    Raises:
      InputError: its header is damaged.
    """
    check_format(file.samplerate, file.channels, name)
    known = file.frames if file.frames < UNKNOWN else None
    return known if part.frames is None else part.frames


def decode(file, skip: int, promised: int | None, name: str) -> Iterator[Block]:
    """The samples of an opened file.

    Args:
      skip: samples of each channel to leave out at the start.
      promised: how many there must be behind those, if that is known.

    Raises:
      InputError: it breaks off.
    """
    import soundfile

    got, most = -skip, max(1, BLOCK // file.channels)
    while promised is None or got < promised:
        wanted = most if promised is None else min(most, promised - got)
        try:
            samples = file.read(wanted, dtype='float32', always_2d=True)
        except soundfile.LibsndfileError as error:
            raise InputError(
                f'{name} breaks off or is damaged {max(0, got) / file.samplerate:.0f} s from its '
                f'start or later ({error.error_string.rstrip(".")}); copy it again, or keep what '
                f'is left: {by_ffmpeg(name)}'
            ) from None
        if not len(samples):
            break
        kept = samples[max(0, -got) :]
        got += len(samples)
        if len(kept):
            yield Block(file.samplerate, kept)
    if promised is not None:
        check_complete(got, promised, file.samplerate, name)
