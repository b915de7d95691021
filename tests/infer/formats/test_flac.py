"""FLAC: the true number of samples comes from the last frame, not from the header."""

import numpy as np
import pytest

from mossjax.errors import InputError
from mossjax.infer import audio
from tests import sounds
from tests.sounds import encoded, flac_total

QUESTION = sounds.question()
WANT = QUESTION / np.float32(32768)
LONG = np.tile(QUESTION, 4)
GOOD, BIG = encoded(QUESTION, format='FLAC'), encoded(LONG, format='FLAC')


def test_the_question_from_a_pipe(golden):
    path = golden('audio/question_pipe.flac')
    assert path.read_bytes()[21:26] == bytes([0xF0, 0, 0, 0, 0])  # it counts no samples
    np.testing.assert_array_equal(audio.load(path, 16000), WANT)
    assert audio.read_header(path) == (16000, 1, 25280)


STREAMS = {
    'as it should be': BIG,
    'no count': flac_total(BIG, 0),
    'count of one': flac_total(BIG, 1),
    'count too low': flac_total(BIG, 50_000),
    'ID3 before': sounds.id3(200) + BIG,
    'ID3 before no count': sounds.id3(200) + flac_total(BIG, 0),
    'ID3v1 behind': BIG + b'TAG' + bytes(125),
    'ID3v1 behind no count': flac_total(BIG, 0) + b'TAG' + bytes(125),
    'zeros behind': BIG + bytes(5000),
    'rubbish behind': BIG + b'\xff\xf8rubbish\x00' * 300,
    'two': GOOD + encoded(LONG[25280:], format='FLAC'),
    'two, the first without a count': flac_total(GOOD, 0) + encoded(LONG[25280:], format='FLAC'),
    'four without counts': flac_total(GOOD, 0) * 4,
    'tags between': (GOOD + b'TAG' + bytes(125) + sounds.id3(300)) * 4,
}  # fmt: skip


@pytest.mark.parametrize('content', STREAMS.values(), ids=STREAMS.keys())
def test_every_sample_is_read(tmp_path, content):
    path = tmp_path / 'a.flac'
    path.write_bytes(content)
    np.testing.assert_array_equal(audio.load(path, 16000), np.tile(WANT, 4))
    assert audio.read_header(path) == (16000, 1, 4 * 25280)


@pytest.mark.parametrize('rate, channels, subtype', [
    (8000, 1, 'PCM_16'), (44100, 2, 'PCM_24'), (96000, 1, 'PCM_24'), (192000, 6, 'PCM_16'),
])  # fmt: skip
def test_frames_of_every_shape_are_found(tmp_path, rate, channels, subtype):
    wav = np.stack([LONG[i:][:70_001] for i in range(channels)], axis=1)
    good = encoded(wav, rate, format='FLAC', subtype=subtype)
    (tmp_path / 'a.flac').write_bytes(flac_total(good, 0))
    assert audio.read_header(tmp_path / 'a.flac') == (rate, channels, 70_001)
    np.testing.assert_array_equal(
        audio.load(tmp_path / 'a.flac', rate), LONG[:70_001] / np.float32(32768)
    )


def test_streams_of_other_rates_and_channels_follow(tmp_path, caplog):
    stereo = encoded(np.stack([QUESTION, QUESTION[::-1]], axis=1), 8000, format='FLAC')
    (tmp_path / 'second.flac').write_bytes(stereo)
    (tmp_path / 'a.flac').write_bytes(GOOD + stereo)
    wav = audio.load(tmp_path / 'a.flac', 16000)
    np.testing.assert_array_equal(wav[:25280], WANT)
    np.testing.assert_array_equal(wav[25280:], audio.load(tmp_path / 'second.flac', 16000))
    assert 'a.flac holds 2 recordings' in sounds.said(caplog)


def test_a_killed_encoder_leaves_whole_frames(tmp_path, caplog):
    path = tmp_path / 'a.flac'
    path.write_bytes(flac_total(BIG, 0)[: len(BIG) // 2])
    wav = audio.load(path, 16000)
    assert 0.4 * len(LONG) < len(wav) < 0.6 * len(LONG) and len(wav) % 4096 == 0
    np.testing.assert_array_equal(wav, np.tile(WANT, 4)[: len(wav)])
    assert audio.read_header(path).frames == len(wav)
    assert 'a.flac ends within a frame' in sounds.said(caplog)


HALF = len(BIG) // 2
REFUSED = {
    'torn': (BIG[:HALF], r'breaks off: its header counts 6.32 s, there are [23]\.'),
    'count too high': (flac_total(BIG, 10**6), 'its header counts 62.50 s, there are 6.32 s'),
    'the highest count': (flac_total(BIG, 2**36 - 1), 'its header counts 4294967.30 s'),
    'the end missing': (BIG[:-10], 'breaks off or is damaged'),
    'bytes missing within': (BIG[:HALF] + BIG[HALF + 5000 :], 'breaks off or is damaged'),
    'bytes overwritten': (BIG[:HALF] + bytes(100) + BIG[HALF + 100 :], 'breaks off or is damaged'),
    'no frame': (flac_total(GOOD, 0)[:200], 'holds no samples'),
}  # fmt: skip


@pytest.mark.parametrize('content, message', REFUSED.values(), ids=REFUSED.keys())
def test_refusals(tmp_path, content, message):
    path = tmp_path / 'a.flac'
    path.write_bytes(content)
    with pytest.raises(InputError, match=f'a.flac .*{message}'):
        audio.load(path, 16000)
