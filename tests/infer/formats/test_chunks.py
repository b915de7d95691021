"""WAV and its kin: the samples that are there are read, whatever sizes the header gives."""

import struct

import numpy as np
import pytest

from mossjax.errors import InputError
from mossjax.infer import audio
from tests import sounds
from tests.sounds import encoded, patched, riff

QUESTION = sounds.question()
PCM = QUESTION.tobytes()
N = len(PCM)
WANT = QUESTION / np.float32(32768)
LIST = b'LIST' + struct.pack('<I', 26) + b'INFOISFT' + struct.pack('<I', 14) + b'Lavf58.29.100\0'
ODD = b'LIST' + struct.pack('<I', 25) + b'INFOISFT' + struct.pack('<I', 13) + b'Lavf58.29.10\0'
OTHER_RATE = riff(PCM, rate=8000)


def _rf64(size: int, tag: bytes = b'RF64', said: int = 2**32 - 1, pcm: bytes = PCM) -> bytes:
    whole = (size + 72) % 2**64
    ds64 = b'ds64' + struct.pack('<IQQQI', 28, whole, size, size // 2, 0)
    content = riff(pcm, said, 2**32 - 1, tag=tag)
    return content[:12] + ds64 + content[12:]


def _w64(size: int) -> bytes:
    content = encoded(QUESTION, format='W64', subtype='PCM_16')
    return patched(content, content.find(b'data') + 16, struct.pack('<Q', size))


def _aiff(size: int | None = None, frames: int | None = None, subtype: str = 'PCM_16') -> bytes:
    content = encoded(QUESTION, format='AIFF', subtype=subtype)
    if size is not None:
        content = patched(content, content.find(b'SSND') + 4, struct.pack('>I', size))
        content = patched(content, 4, struct.pack('>I', 0))
    if frames is not None:
        content = patched(content, content.find(b'COMM') + 10, struct.pack('>I', frames))
    return content


def _caf(size: int) -> bytes:
    content = encoded(QUESTION, format='CAF', subtype='PCM_16')
    return patched(content, content.find(b'data') + 4, struct.pack('>q', size))


def _au(size: int) -> bytes:
    return patched(encoded(QUESTION, format='AU', subtype='PCM_16'), 8, struct.pack('>I', size))


WHOLE = {
    'as it should be': riff(PCM),
    'size 0, killed': riff(PCM, 0, 0),
    'size 0, file size right': riff(PCM, 0),
    'size 0 behind a text': riff(PCM, 0, 0, before=LIST),
    'ffmpeg into a pipe': riff(PCM, 2**32 - 1, 2**32 - 1, before=LIST),
    'arecord, killed': riff(PCM, 2**31 - 1, 2**31 + 35),
    'sox into a pipe': riff(PCM, 0x7FFFF000, 0x7FFFF024),
    'beyond two gigabytes': riff(PCM, 2**31, 2**31 + 36),
    'size of an older moment': riff(PCM, N // 2),
    'no file size': riff(PCM, whole=0),
    'blocks of 102 bytes': patched(riff(PCM), 32, b'\x66\0'),
    'blocks of no bytes': patched(riff(PCM), 32, b'\0\0'),
    'odd chunk before': riff(PCM, before=ODD + b'\0'),
    'odd chunk before, not padded': riff(PCM, before=ODD),
    'odd chunk behind': riff(PCM, after=ODD + b'\0'),
    'odd chunk behind, not padded': riff(PCM, after=ODD),
    'torn chunk behind': riff(PCM, after=LIST[:20]),
    'pad of half a page before': riff(PCM, before=b'FLLR' + struct.pack('<I', 4044) + bytes(4044)),
    'ID3 before': sounds.id3(300) + riff(PCM),
    'ID3 behind': riff(PCM) + b'TAG' + bytes(125),
    'zeros behind': riff(PCM) + bytes(5000),
    'RF64': _rf64(N), 'BW64': _rf64(N, b'BW64'), 'RF64 with a short size': _rf64(N, said=N),
    'RF64, killed': _rf64(0), 'RF64 of 2**62 bytes': _rf64(2**62), 'RF64, -1': _rf64(2**64 - 1),
    'W64': _w64(N + 24), 'W64, killed': _w64(0), 'W64, -1': _w64(2**63 - 1),
    'W64 of an older moment': _w64(N // 2 + 24),
    'AIFF': _aiff(), 'AIFF, killed': _aiff(0, 0), 'AIFF into a pipe': _aiff(2**32 - 1, 2**32 - 1),
    'AIFF of an older moment': _aiff(N // 2, N // 4),
    'CAF, killed': _caf(0), 'CAF into a pipe': _caf(-1), 'CAF of an older moment': _caf(N // 2 + 4),
    'AU, killed': _au(0), 'AU into a pipe': _au(2**32 - 1), 'AU of an older moment': _au(N // 2),
}  # fmt: skip


@pytest.mark.parametrize('content', WHOLE.values(), ids=WHOLE.keys())
def test_every_sample_is_read(tmp_path, content):
    path = tmp_path / 'a.wav'
    path.write_bytes(content)
    np.testing.assert_array_equal(audio.load(path, 16000), WANT)
    assert audio.read_header(path) == (16000, 1, 25280)


@pytest.mark.parametrize('subtype', ['PCM_U8', 'PCM_24', 'PCM_32', 'FLOAT', 'DOUBLE', 'ULAW',
                                     'ALAW', 'IMA_ADPCM', 'MS_ADPCM', 'GSM610'])  # fmt: skip
def test_size_0_in_every_coding(tmp_path, subtype):
    good = encoded(WANT, 8000, format='WAV', subtype=subtype)
    want = sounds.decoded(good)
    at = good.find(b'data') + 4
    size = struct.unpack('<I', good[at : at + 4])[0]
    for name, value in (('zero', 0), ('pipe', 2**32 - 1), ('half', size // 2 // 512 * 512)):
        path = tmp_path / f'{name}.wav'
        path.write_bytes(patched(good, at, struct.pack('<I', value)))
        np.testing.assert_array_equal(audio.load(path, 8000), want)
        assert audio.read_header(path).frames == len(want)


CUT = {
    'WAV': riff(PCM)[: 44 + N // 2],
    'WAV within a sample': riff(PCM)[: 45 + N // 2],
    'AIFF': _aiff()[: 54 + N // 2],
    'AU': _au(N)[: 24 + N // 2],
    'RF64': _rf64(N, pcm=PCM[: N // 2]),
    'W64': _w64(N + 24)[: -N // 2],
}


@pytest.mark.parametrize('content', CUT.values(), ids=CUT.keys())
def test_what_a_killed_recorder_left_is_read_to_its_end_and_this_is_said(
    tmp_path, content, caplog
):
    path = tmp_path / 'a.wav'
    path.write_bytes(content)
    np.testing.assert_array_equal(audio.load(path, 16000), WANT[:12640])
    said = N + 8 * (b'AIFF' in content[:12])
    assert f'a.wav says it holds {said}' in sounds.said(caplog)
    assert 'it is read to its end' in sounds.said(caplog)


def test_pipes_give_no_warning(tmp_path, caplog):
    path = tmp_path / 'a.wav'
    path.write_bytes(WHOLE['ffmpeg into a pipe'])
    audio.load(path, 16000)
    assert not caplog.records


TWO = {
    'cat a.wav a.wav': riff(PCM) * 2,
    'from pipes': riff(PCM, 2**32 - 1, 2**32 - 1) + riff(PCM, 0, 0),
    'RF64 last': riff(PCM) + _rf64(N),
    'with a text between': riff(PCM, after=LIST) + riff(PCM),
    'with an odd text between': riff(PCM, after=ODD) + riff(PCM),
    'W64': _w64(N + 24) * 2,
    'AIFF': _aiff() * 2,
    'AIFF, the last killed': _aiff() + _aiff(0, 0),
    'CAF': _caf(N + 4) * 2,
    'CAF, killed': _caf(-1) * 2,
    'AU': _au(N) * 2,
}


@pytest.mark.parametrize('content', TWO.values(), ids=TWO.keys())
def test_all_of_several_files_in_one_is_read(tmp_path, content, caplog):
    path = tmp_path / 'a.wav'
    path.write_bytes(content)
    np.testing.assert_array_equal(audio.load(path, 16000), np.tile(WANT, 2))
    assert 'holds 2 recordings' in sounds.said(caplog)


def test_each_of_several_files_has_its_own_rate(tmp_path):
    (tmp_path / 'slow.wav').write_bytes(OTHER_RATE)
    (tmp_path / 'both.wav').write_bytes(riff(PCM) + OTHER_RATE)
    both = audio.load(tmp_path / 'both.wav', 16000)
    np.testing.assert_array_equal(both[:25280], WANT)
    np.testing.assert_array_equal(both[25280:], audio.load(tmp_path / 'slow.wav', 16000))
    assert audio.read_header(tmp_path / 'both.wav').seconds == pytest.approx(len(both) / 16000)


REFUSED = {
    'sound or rubbish behind': (
        riff(PCM, N // 2, 36 + N // 2),
        'goes on for 25280 bytes .* ffmpeg -ignore_length 1 -i .*; if they are not.* ffmpeg -i',
    ),
    'rubbish behind': (riff(PCM) + b'\x9c\x01rubbish' * 50, 'goes on for 450 bytes'),
    'no samples': (riff(b''), 'holds no samples'),
    'texts instead of samples': (riff(b'', after=LIST), 'holds no samples'),
    'nothing but a description': (riff(PCM)[:36], 'WAV file without its samples'),
    'no description': (b'RIFF\0\0\0\0WAVEdata\x10\0\0\0' + bytes(16), 'without their description'),
    'the highest rate': (riff(PCM, rate=2**31 - 1), 'has 2147483647 samples a second; from 4000'),
    'a rate above 31 bits': (riff(PCM, rate=2**32 - 1), '4294967295 samples a second'),
    'one sample a second': (riff(PCM, rate=1), 'has 1 samples a second'),
    'rate 0': (riff(PCM, rate=0), 'has 0 samples a second'),
    'no channels': (riff(PCM, channels=0), 'has 0 channels; from 1 to 256'),
    'all channels': (riff(PCM, channels=65535), 'has 65535 channels'),
    'AIFF of no rate': (patched(_aiff(), _aiff().find(b'COMM') + 16, bytes(10)), 'has 0 samples'),
    'CAF of an endless rate': (
        patched(_caf(-1), _caf(-1).find(b'desc') + 12, struct.pack('>d', np.inf)), 'has inf sam'
    ),
    'AU of 2**32 channels': (patched(_au(N), 20, b'\xff' * 4), 'has 4294967295 channels'),
    'W64 at 2 GHz': (
        patched(_w64(N), _w64(N).find(b'fmt ') + 28, struct.pack('<I', 2**31)), 'samples a second'
    ),
}  # fmt: skip


@pytest.mark.parametrize('content, message', REFUSED.values(), ids=REFUSED.keys())
def test_refusals(tmp_path, content, message):
    path = tmp_path / 'a.wav'
    path.write_bytes(content)
    for read in (audio.read_header, lambda path: audio.load(path, 16000)):
        with pytest.raises(InputError, match=message):
            read(path)
