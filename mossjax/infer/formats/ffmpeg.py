"""Decoding by FFmpeg (PyAV, the extra [audio]): what libsndfile does not read, or not whole."""

from collections.abc import Iterator

import numpy as np

from mossjax.errors import InputError
from mossjax.infer.formats.block import (
    MISSING_SECONDS,
    Block,
    by_ffmpeg,
    check_complete,
    check_format,
    remedy,
    say,
)
from mossjax.infer.formats.view import View

# FFmpeg's readers that may open a file. Others follow names and addresses they find in it.
DEMUXERS = (
    'aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,avr,caf,dsf,dts,dtshd,eac3,epaf,flac,flv,gsm,hcom,'
    'iff,ircam,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpc,mpc8,mpeg,mpegts,nistsphere,nut,ogg,'
    'pvf,qoa,rm,rso,sbc,sox,tak,truehd,tta,voc,w64,wav,wv,wve,xa'
)
# Where FFmpeg has two decoders, and the one it prefers cannot read all of what phones write.
PREFERRED = {'amrnb': 'libopencore_amrnb', 'amrwb': 'libopencore_amrwb'}
OPUS_RATE = 48_000  # Hz, of every decoded Opus stream


def decode(view: View, frames: int | None, name: str, why: str) -> Iterator[Block]:
    """The samples of a recording; of several streams the first.

    Args:
      frames: samples of each channel that there must be, if that is known.
      why: FFmpeg is asked, for messages.

    Raises:
      InputError: PyAV is not installed, the file has no sound, or it is damaged.
    """
    try:
        import av
    except ImportError:
        raise InputError(
            f'{name} cannot be read here ({why}); {remedy(name)}, or install what reads it if it '
            "is m4a, aac, webm or another that FFmpeg knows: pip install 'mossjax[audio]'"
        ) from None
    seconds = 0.0
    try:
        # Titles in an old encoding are no reason to refuse the sound.
        with av.open(
            view, options={'format_whitelist': DEMUXERS}, metadata_errors='replace'
        ) as container:
            for block in _stream(container, frames, name):
                seconds += len(block.samples) / block.rate
                yield block
    except av.error.FFmpegError as error:
        if seconds:
            raise _broken(name, seconds, error) from None
        raise InputError(
            f'{name} is not audio that can be read ({why}; FFmpeg: {error.strerror}); '
            f'{remedy(name)}'
        ) from None


def _stream(container, frames: int | None, name: str) -> Iterator[Block]:
    import av

    streams = container.streams.audio
    if not streams:
        raise InputError(f'{name} holds no sound, only pictures or text; give a recording')
    if len(streams) > 1:
        say(f'{name} holds {len(streams)} sound tracks; the first is heard')
    stream = streams[0]
    if stream.codec_context is None:
        raise InputError(f'{name} is in a coding that FFmpeg does not know; give a WAV')
    decoder, got, seconds, damaged = _decoder(stream), 0, 0.0, None
    start, gaps = None, 0.0  # of the clock that the file gives its samples
    for packet in container.demux(stream):
        try:
            decoded = decoder.decode(packet if packet.size else None)
        except av.error.FFmpegError as error:
            damaged = error
            continue
        for frame in decoded:
            # Damaged packets before the first sample and after the last took nothing away. Where
            # the samples were counted, what is missing is seen at the end.
            if damaged and seconds and frames is None and packet.size:
                raise _broken(name, seconds, damaged)
            damaged = damaged if seconds else None
            if frame.time is not None:
                late = frame.time - seconds
                start = late if start is None else start
                if late - start > MISSING_SECONDS:
                    gaps, start = gaps + late - start, late
            check_format(frame.sample_rate, frame.layout.nb_channels, name)
            samples = _samples(frame)
            if not got:
                samples = samples[_undelayed(stream, packet, frame) :]
            got += len(samples)
            seconds += len(samples) / frame.sample_rate
            yield Block(frame.sample_rate, samples)
    rate = stream.rate or OPUS_RATE
    if frames is not None:
        check_complete(got, frames, rate, name)
    elif 'mp4' in container.format.name and stream.duration:
        # The length of MP4 is a count of what its tables list; others are estimates.
        promised = round(stream.duration * stream.time_base * rate)
        check_complete(round(seconds * rate), promised, rate, name)
    if gaps and frames is None:
        say(f'{name} has gaps of {gaps:.2f} s in all, where samples are missing')
    if damaged and frames is None:
        say(f'{name} ends in bytes that cannot be decoded; it may be cut off')


def _decoder(stream):
    """The decoder of a stream: FFmpeg's choice, or ours."""
    import av

    preferred = PREFERRED.get(stream.codec_context.name)
    if preferred not in av.codecs_available:
        return stream.codec_context
    return av.CodecContext.create(preferred, 'r')


def _samples(frame) -> np.ndarray:
    """(w, c) float32 of a decoded frame of any format."""
    values = frame.to_ndarray()  # (c, w) if planar, else (1, w * c)
    if frame.format.is_planar:
        values = values.T
    values = values.reshape(-1, frame.layout.nb_channels)
    if values.dtype.kind == 'f':
        return values.astype(np.float32)
    zero, scale = (128, 128) if values.dtype.kind == 'u' else (0, 2 ** (8 * values.itemsize - 1))
    return ((values.astype(np.float64) - zero) / scale).astype(np.float32)


def _undelayed(stream, packet, frame) -> int:
    """Samples of its first frame by which an Opus stream is late.

    FFmpeg takes a part of the delay for the whole where Matroska or MP4 name a rate other than 48
    kHz (RFC 7845, 5.1: the pre-skip in bytes 10 and 11, at 48 kHz).
    """
    extra = stream.codec_context.extradata or b''
    if not extra.startswith(b'OpusHead') or not packet.duration:
        return 0
    taken = round(packet.duration * packet.time_base * OPUS_RATE) - frame.samples
    return max(0, int.from_bytes(extra[10:12], 'little') - max(0, taken))


def _broken(name: str, seconds: float, error: Exception) -> InputError:
    return InputError(
        f'{name} is damaged after {seconds:.2f} s ({error.strerror}); copy it again, or keep what '
        f'is left: {by_ffmpeg(name)}'
    )
