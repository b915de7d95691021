"""MP3: all frames are read, whatever the count in the file says. Truth: FFmpeg's decoding."""

import io
import struct

import av
import numpy as np
import pytest

from mossjax.errors import InputError
from mossjax.infer import audio
from mossjax.infer.formats.mpeg_frames import frames_of
from tests import sounds
from tests.sounds import encoded, patched

QUESTION = sounds.question() / np.float32(32768)


def _mp3(rate: int = 16000, seconds: float = 1.58, mode: str = 'VARIABLE') -> bytes:
    wav = np.tile(QUESTION, 3)[: int(rate * seconds)]
    return encoded(wav, rate, format='MP3', bitrate_mode=mode, compression_level=0.4)


GOOD = _mp3()
LONG = _mp3(seconds=4.0)
COUNT = GOOD.find(b'Xing') + 8  # byte of the number of frames


def _uncounted(content: bytes) -> bytes:
    """Without the frame that holds the count."""
    return content[list(frames_of(content))[1].start :]


def _recount(content: bytes, frames: int) -> bytes:
    return patched(content, content.find(b'Xing') + 8, struct.pack('>I', frames))


def _by_ffmpeg(content: bytes) -> np.ndarray:
    with av.open(io.BytesIO(content)) as container:
        return np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])


def test_question_without_a_count_is_read_whole(golden):
    path = golden('audio/question_no_count.mp3')
    wav = audio.load(path, 16000)
    assert len(wav) == 26496  # 46 frames of 576
    assert audio.read_header(path) == (16000, 1, 26496)
    np.testing.assert_allclose(wav, _by_ffmpeg(path.read_bytes()), rtol=0, atol=2e-6)
    # The encoder's delay of 576 and the decoder's of 529 are in it.
    np.testing.assert_allclose(np.corrcoef(wav[1105:][:25280], QUESTION)[0, 1], 1, atol=1e-3)


WHOLE = {
    'as it should be': GOOD,
    'no count': _uncounted(GOOD),
    'no count, 8 kHz': _uncounted(_mp3(8000)),
    'no count, 22.05 kHz': _uncounted(_mp3(22050)),
    'no count, 44.1 kHz': _uncounted(_mp3(44100)),
    'no count, 48 kHz, constant bitrate': _uncounted(_mp3(48000, mode='CONSTANT')),
    'count of 0': patched(GOOD, COUNT, bytes(4)),
    'flag of the count missing': patched(GOOD, COUNT - 1, b'\x0e'),
    'ID3 before': sounds.id3(3000) + GOOD,
    'ID3 before, twice': sounds.id3(300) * 2 + GOOD,
    'ID3 before no count': sounds.id3(3000) + _uncounted(GOOD),
}


@pytest.mark.parametrize('content', WHOLE.values(), ids=WHOLE.keys())
def test_every_frame_is_read(tmp_path, content, caplog):
    path = tmp_path / 'a.mp3'
    path.write_bytes(content)
    header = audio.read_header(path)
    wav, want = audio.load(path, header.rate), _by_ffmpeg(content)
    assert header.frames == len(wav) == len(want)
    np.testing.assert_allclose(wav, want, rtol=0, atol=5e-6)
    assert not caplog.records


SURROUNDED = {
    'ID3 behind': GOOD + sounds.id3(500),
    'ID3v1 behind': GOOD + b'TAG' + bytes(125),
    'APE behind': GOOD + b'APETAGEX' + struct.pack('<IIII', 2000, 40, 1, 0) + bytes(48),
    'zeros before': bytes(3000) + GOOD,
    'the end of a frame before': b'\x55' * 50 + GOOD,
    'zeros behind': GOOD + bytes(2000),
    'count too low': _recount(GOOD, len(list(frames_of(GOOD))) - 2),
}


@pytest.mark.parametrize('content', SURROUNDED.values(), ids=SURROUNDED.keys())
def test_what_lies_around_changes_nothing(tmp_path, content):
    """FFmpeg itself takes such for sound or forgets the encoder's delay."""
    path = tmp_path / 'a.mp3'
    path.write_bytes(content)
    wav, want = audio.load(path, 16000), _by_ffmpeg(GOOD)
    assert len(want) <= len(wav) < len(want) + 2 * 576
    np.testing.assert_allclose(wav[: len(want)], want, rtol=0, atol=5e-6)


def test_a_count_that_is_far_too_low(tmp_path):
    """Then nobody knows how much the encoder added at the end; all of it is read."""
    path = tmp_path / 'a.mp3'
    path.write_bytes(_recount(LONG, 10))
    wav, want = audio.load(path, 16000), _by_ffmpeg(LONG)
    assert len(want) < len(wav) < len(want) + 1152
    np.testing.assert_allclose(wav[: len(want)], want, rtol=0, atol=5e-6)


SEVERAL = {
    'cat a.mp3 b.mp3': GOOD + LONG,
    'three': GOOD + LONG + GOOD,
    'the second without a count': GOOD + _uncounted(LONG),
    'the first without a count': _uncounted(GOOD) + LONG,
    'none with a count': _uncounted(GOOD) + _uncounted(LONG),
    'two rates': _uncounted(_mp3(44100)) + _uncounted(_mp3(22050)),
}


@pytest.mark.parametrize('content', SEVERAL.values(), ids=SEVERAL.keys())
def test_several_files_in_one_are_read_as_ffmpeg_reads_them(tmp_path, content):
    path = tmp_path / 'a.mp3'
    path.write_bytes(content)
    rates = {frame.rate for frame in frames_of(content)}
    wav = audio.load(path, max(rates))
    if len(rates) == 1:
        want = _by_ffmpeg(content)
        assert abs(len(wav) - len(want)) <= 200
        n = min(len(wav), len(want))
        np.testing.assert_allclose(wav[:n], want[:n], rtol=0, atol=5e-6)
    seconds = sum(frame.samples / frame.rate for frame in frames_of(content))
    assert len(wav) / max(rates) == pytest.approx(seconds, abs=0.15)
    assert audio.read_header(path).seconds == pytest.approx(len(wav) / max(rates), abs=1e-3)


def test_tags_between_are_no_sound(tmp_path):
    bare = _uncounted(GOOD)
    for name, content in (
        ('bare', bare * 3), ('tagged', (sounds.id3(200) + bare + b'TAG' + bytes(125)) * 3)
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
    np.testing.assert_array_equal(
        audio.load(tmp_path / 'bare', 16000), audio.load(tmp_path / 'tagged', 16000)
    )


def test_mp3_in_a_wav_has_no_count(tmp_path):
    bare = _uncounted(GOOD)
    fmt = struct.pack('<HHIIHHHHIHHH', 0x55, 1, 16000, 6000, 1, 0, 12, 1, 2, 576, 1, 1393)
    head = b'WAVEfmt ' + struct.pack('<I', len(fmt)) + fmt + b'data' + struct.pack('<I', len(bare))
    (tmp_path / 'a.mp3').write_bytes(bare)
    (tmp_path / 'a.wav').write_bytes(b'RIFF' + struct.pack('<I', len(head + bare)) + head + bare)
    np.testing.assert_array_equal(
        audio.load(tmp_path / 'a.wav', 16000), audio.load(tmp_path / 'a.mp3', 16000)
    )


def test_a_torn_file_without_a_count_is_read_up_to_its_last_frame(tmp_path, caplog):
    bare = _uncounted(LONG)
    frames = list(frames_of(bare))
    path = tmp_path / 'a.mp3'
    path.write_bytes(bare[: frames[50].start + 20])
    wav = audio.load(path, 16000)
    np.testing.assert_allclose(wav, _by_ffmpeg(bare)[: 50 * 576], rtol=0, atol=5e-6)
    assert 'a.mp3 ends within a frame' in sounds.said(caplog)


def test_what_is_lost_without_a_trace_is_said(tmp_path, caplog):
    bare = _uncounted(LONG)
    frames = list(frames_of(bare))
    gap = bare[: frames[40].start] + bytes(700) + bare[frames[42].start :]
    (tmp_path / 'gap.mp3').write_bytes(gap)
    assert len(audio.load(tmp_path / 'gap.mp3', 16000)) == 576 * (len(frames) - 2)
    assert 'gap.mp3 has 700 bytes between frames' in sounds.said(caplog)
    (tmp_path / 'end.mp3').write_bytes(bare[: frames[40].start] + b'\x01' * 5000)
    assert len(audio.load(tmp_path / 'end.mp3', 16000)) == 576 * 40
    assert 'end.mp3 has 5000 bytes behind its last frame' in sounds.said(caplog)


REFUSED = {
    'torn': (LONG[: len(LONG) // 2], 'its header counts 4.10 s, there are 1.98'),
    'count too high': (_recount(LONG, 10**5), 'its header counts 3600'),
    'frames overwritten': (patched(LONG, len(LONG) // 2, bytes(900)), 'breaks off or has gaps'),
}


@pytest.mark.parametrize('content, message', REFUSED.values(), ids=REFUSED.keys())
def test_refusals(tmp_path, content, message):
    path = tmp_path / 'a.mp3'
    path.write_bytes(content)
    for read in (audio.read_header, lambda path: audio.load(path, 16000)):
        with pytest.raises(InputError, match=message):
            read(path)
