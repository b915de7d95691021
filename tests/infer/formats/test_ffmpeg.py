"""What phones and browsers record, by FFmpeg. The files are written by FFmpeg's own encoders."""

import io
import pathlib
import re
import sys
import tempfile

import av
import numpy as np
import pytest

from mossjax.errors import InputError
from mossjax.infer import audio
from mossjax.infer.formats.ogg import pages
from mossjax.infer.formats.view import View
from tests import sounds

QUESTION = sounds.question()
WANT = QUESTION / np.float32(32768)


def _encoded(
    muxer: str, codec: str, rate: int = 16000, times: int = 1, tracks: int = 1, picture=False,
    options=None,
) -> bytes:
    """The question in a container of FFmpeg, `times` over; other tracks are silent."""
    folder = tempfile.TemporaryDirectory()
    path = pathlib.Path(folder.name, 'a')
    with folder, av.open(str(path), 'w', format=muxer, options=options or {}) as container:
        if picture:
            film = container.add_stream('mpeg4', rate=10)
            film.width = film.height = 16
        streams = [container.add_stream(codec, rate=rate, layout='mono') for _ in range(tracks)]
        if picture:
            for _ in range(20):
                image = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), 'rgb24')
                container.mux(film.encode(image))
        for number, stream in enumerate(streams):
            stream.bit_rate = 48_000
            pcm = np.tile(QUESTION, times) * (not number)
            for start in range(0, len(pcm), 1000):
                frame = av.AudioFrame.from_ndarray(pcm[None, start : start + 1000], 's16', 'mono')
                frame.sample_rate, frame.pts = rate, start
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        container.close()
        return path.read_bytes()


M4A = _encoded('ipod', 'aac', options={'movflags': 'faststart'})
WEBM = _encoded('webm', 'libopus')

READ = {  # and by how many samples the encoder may delay or lengthen it
    'm4a': (M4A, 1024),
    'm4a, lossless': (_encoded('ipod', 'alac'), 0),
    'mp4 in fragments': (
        _encoded('mp4', 'aac', options={'movflags': 'frag_keyframe+empty_moov'}), 2048
    ),
    'mp4 with a picture': (_encoded('mp4', 'aac', picture=True), 2048),
    'mov': (_encoded('mov', 'pcm_s16le'), 0),
    'aac': (_encoded('adts', 'aac'), 2048),
    'webm, opus': (WEBM, 0),
    'webm of a browser': (_encoded('webm', 'libopus', options={'live': '1'}), 0),
    'mkv': (_encoded('matroska', 'flac'), 0),
    'wma': (_encoded('asf', 'wmav2'), 512),
    'ac3': (_encoded('ac3', 'ac3', 32000), 0),
    'transport stream': (_encoded('mpegts', 'aac'), 2048),
    'ogg with flac': (_encoded('ogg', 'flac'), 0),
    'wavpack': (_encoded('wv', 'wavpack'), 0),
    'wav with g722': (_encoded('wav', 'g722'), 22),
}


@pytest.mark.parametrize('content, padding', READ.values(), ids=READ.keys())
def test_speech_is_heard(tmp_path, content, padding):
    path = tmp_path / 'a.wav'  # its name does not matter
    path.write_bytes(content)
    wav = audio.load(path, 16000)
    slow = b'\x0b\x77' == content[:2]  # AC-3 knows no rate below 32 kHz: half the length
    want = WANT[::2] if slow else WANT
    assert -300 <= len(wav) - len(want) <= padding + 1600 * slow
    span = np.correlate(wav[: len(want) + 1], want[3000 : len(want) - 3000], 'valid')
    lag = int(span.argmax()) - 3000
    assert abs(lag) <= padding + 300 * slow
    heard = wav[3000 + lag :][: len(want) - 6000]
    assert np.corrcoef(heard, want[3000 : len(want) - 3000])[0, 1] > 0.95
    header = audio.read_header(path)
    assert header.seconds * 16000 == pytest.approx(len(wav), abs=1)


def test_the_delay_of_opus_is_left_out(tmp_path):
    """Matroska names 16 kHz here, by which FFmpeg takes 104 of the 312 samples for the delay."""
    path = tmp_path / 'a.webm'
    path.write_bytes(WEBM)
    wav = audio.load(path, 16000)
    assert len(wav) == 25280
    assert int(np.correlate(wav, WANT[500:-500], 'valid').argmax()) == 500


def test_speech_from_a_phone_with_its_pauses(golden, tmp_path, caplog):
    content = golden('audio/question.amr').read_bytes()
    path = tmp_path / 'twice.amr'
    path.write_bytes(content * 2)
    once, twice = audio.load(golden('audio/question.amr'), 16000), audio.load(path, 16000)
    assert len(once) == 79 * 320  # frames of 20 ms
    np.testing.assert_array_equal(twice, np.tile(once, 2))
    span = np.correlate(once, WANT[2000:-2000], 'valid')
    heard = once[int(span.argmax()) :][: len(WANT) - 4000]
    assert np.corrcoef(heard, WANT[2000:-2000])[0, 1] > 0.5  # at 4.75 kbit/s
    assert 'twice.amr holds 2 recordings' in sounds.said(caplog)


def test_the_first_of_several_tracks_is_heard(tmp_path, caplog):
    path = tmp_path / 'a.mp4'
    path.write_bytes(_encoded('mp4', 'aac', tracks=2, picture=True))
    assert np.abs(audio.load(path, 16000)).max() > 0.5
    assert 'a.mp4 holds 2 sound tracks; the first is heard' in sounds.said(caplog)


@pytest.mark.parametrize('content', [M4A, _encoded('asf', 'wmav2')], ids=['m4a', 'wma'])
def test_files_behind_each_other_are_read(tmp_path, content, caplog):
    for name, times in (('one', 1), ('three', 3)):
        (tmp_path / name).write_bytes(content * times)
    one = audio.load(tmp_path / 'one', 16000)
    np.testing.assert_array_equal(audio.load(tmp_path / 'three', 16000), np.tile(one, 3))
    assert 'three holds 3 recordings' in sounds.said(caplog)


def test_a_browser_that_was_closed_leaves_what_it_had(tmp_path, caplog):
    whole = _encoded('webm', 'libopus', times=3, options={'live': '1'})
    path = tmp_path / 'a.webm'
    path.write_bytes(whole[: len(whole) // 2])
    wav = audio.load(path, 16000)
    assert 0.3 < len(wav) / (3 * 25280) < 0.7
    assert 'a.webm ends within a block' in sounds.said(caplog)


def test_aac_that_breaks_off_says_so(tmp_path, caplog):
    content = READ['aac'][0]
    path = tmp_path / 'a.aac'
    path.write_bytes(content[: len(content) // 2])
    assert 0.3 < len(audio.load(path, 16000)) / 25280 < 0.7
    assert 'a.aac ends in bytes that cannot be decoded' in sounds.said(caplog)


def test_missing_pages_are_said(tmp_path, caplog):
    content = _encoded('ogg', 'flac', times=8)
    found = [content[page.start : page.stop] for page in pages(View(io.BytesIO(content)))]
    middle = len(found) // 2
    path = tmp_path / 'a.oga'
    path.write_bytes(b''.join(found[:middle] + found[middle + 1 :]))
    lost = 8 * 1.58 - len(audio.load(path, 16000)) / 16000
    assert lost > 0.2
    gaps = re.search('a.oga has gaps of (.*) s in all', sounds.said(caplog)).group(1)
    assert float(gaps) == pytest.approx(lost, abs=0.01)


def test_titles_may_be_in_any_encoding(tmp_path):
    content = _encoded('ipod', 'aac')
    path = tmp_path / 'a.m4a'
    assert b'Lavf' in content  # the name of the program that wrote it
    path.write_bytes(content.replace(b'Lavf', b'\xff\xfe\xe9\x80'))
    assert len(audio.load(path, 16000)) > 25000


ASF_LENGTH = READ['wma'][0]
REFUSED = {
    'm4a torn': (M4A[: len(M4A) * 2 // 3], 'breaks off or has gaps: .* can be decoded of 1.58 s'),
    'm4a without its tables': (_encoded('ipod', 'aac')[:9000], 'is not audio .* give a WAV'),
    'wma torn': (ASF_LENGTH[:8000], 'breaks off: its header counts'),
    'pictures alone': (_encoded('mp4', 'aac', tracks=0, picture=True), 'holds no sound'),
    'a list of files': (b'ffconcat version 1.0\nfile /etc/hosts\n', 'is not audio'),
    'a playlist': (b'#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/hosts\n', 'is not audio'),
}


@pytest.mark.parametrize('content, message', REFUSED.values(), ids=REFUSED.keys())
def test_refusals(tmp_path, content, message):
    path = tmp_path / 'a.bin'
    path.write_bytes(content)
    with pytest.raises(InputError, match=f'a.bin {message}'):
        audio.load(path, 16000)


def test_damage_within_is_refused(tmp_path):
    content = bytearray(READ['aac'][0])
    middle = content.find(bytes(content[:3]), len(content) // 2)
    content[middle + 7 : middle + 60] = b'\xff' * 53
    path = tmp_path / 'a.aac'
    path.write_bytes(content)
    with pytest.raises(InputError, match='a.aac is damaged after 0.[0-9]+ s .* ffmpeg -i'):
        audio.load(path, 16000)


@pytest.mark.parametrize('name, content', [
    ('q.m4a', M4A), ('q.webm', WEBM), ('my question.aac', READ['aac'][0]),
    ('two.mp3', sounds.encoded(QUESTION, format='MP3') * 2),
    ('f.oga', READ['ogg with flac'][0]),
])  # fmt: skip
def test_without_pyav_the_message_says_how_to_get_it_and_how_to_do_without(
    tmp_path, monkeypatch, name, content
):
    monkeypatch.setitem(sys.modules, 'av', None)
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        audio.load(path, 16000)
    quoted = f"'{path}'" if ' ' in name else str(path)
    assert f'ffmpeg -i {quoted} ' in str(refused.value)
    assert "pip install 'mossjax[audio]'" in str(refused.value)


def test_without_pyav_the_rest_is_read(tmp_path, monkeypatch, golden):
    monkeypatch.setitem(sys.modules, 'av', None)
    assert len(audio.load(golden('audio/question_no_count.mp3'), 16000)) == 26496
    (tmp_path / 'a.ogg').write_bytes(sounds.encoded(QUESTION, format='OGG', subtype='VORBIS') * 2)
    assert len(audio.load(tmp_path / 'a.ogg', 16000)) == 50560
    (tmp_path / 'a.wav').write_bytes(sounds.riff(QUESTION.tobytes(), size=0))
    assert len(audio.load(tmp_path / 'a.wav', 16000)) == 25280
