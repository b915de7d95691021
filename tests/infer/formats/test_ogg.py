"""Ogg: every link of a chain is read, gaps are noticed."""

import io

import numpy as np
import pytest

from mossjax.errors import InputError
from mossjax.infer import audio
from mossjax.infer.formats.ogg import pages
from mossjax.infer.formats.view import View
from tests import sounds
from tests.sounds import decoded, encoded

QUESTION = sounds.question()
CODINGS = ['VORBIS', 'OPUS']


def _ogg(coding: str, rate: int = 16000, times: int = 1, channels: int = 1) -> bytes:
    wav = np.tile(QUESTION, times)
    wav = wav if channels == 1 else np.stack([wav] * channels, axis=1)
    return encoded(wav, rate, format='OGG', subtype=coding)


def _split(content: bytes) -> list[bytes]:
    return [content[page.start : page.stop] for page in pages(View(io.BytesIO(content)))]


@pytest.mark.parametrize('coding', CODINGS)
def test_chains_are_read_to_their_end(tmp_path, coding, caplog):
    first, second = _ogg(coding), _ogg(coding, times=2)
    want = np.concatenate([decoded(first), decoded(second), decoded(first)])
    assert len(want) == 4 * 25280
    path = tmp_path / 'a.ogg'
    path.write_bytes(b'rubbish' + first + second + b'OggS\0rubbish' * 9 + first + bytes(99))
    np.testing.assert_allclose(audio.load(path, 16000), want, rtol=0, atol=2e-6)
    assert audio.read_header(path) == (16000, 1, 4 * 25280)
    assert 'a.ogg holds 3 recordings' in sounds.said(caplog)


def test_links_of_other_codings_rates_and_channels(tmp_path):
    links = [_ogg('VORBIS'), _ogg('OPUS'), _ogg('VORBIS', 48000, channels=2), _ogg('OPUS', 24000)]
    for name, content in (('a.ogg', b''.join(links)), ('c.ogg', links[2]), ('d.ogg', links[3])):
        (tmp_path / name).write_bytes(content)
    want = [decoded(links[0]), decoded(links[1])]
    want += [audio.load(tmp_path / name, 16000) for name in ('c.ogg', 'd.ogg')]
    np.testing.assert_allclose(
        audio.load(tmp_path / 'a.ogg', 16000), np.concatenate(want), rtol=0, atol=2e-6
    )


@pytest.mark.parametrize('coding', CODINGS)
def test_a_stopped_recorder_leaves_no_mark_of_the_end(tmp_path, coding, caplog):
    content = _ogg(coding, times=8)
    pages = _split(content)
    path = tmp_path / 'a.ogg'
    path.write_bytes(b''.join(pages[: len(pages) // 2]) + pages[len(pages) // 2][:100])
    wav = audio.load(path, 16000)
    assert 0.2 < len(wav) / (8 * 25280) < 0.8
    np.testing.assert_allclose(wav[:-2000], decoded(content)[: len(wav) - 2000], rtol=0, atol=2e-6)
    assert audio.read_header(path).frames == len(wav)
    assert 'a.ogg has no mark of its end' in sounds.said(caplog)


@pytest.mark.parametrize('coding', CODINGS)
def test_missing_pages_are_noticed(tmp_path, coding):
    pages = _split(_ogg(coding, times=8))
    middle = len(pages) // 2
    path = tmp_path / 'a.ogg'
    path.write_bytes(b''.join(pages[:middle] + pages[middle + 1 :]))
    with pytest.raises(InputError, match='a.ogg breaks off or has gaps'):
        audio.load(path, 16000)


def test_a_broadcast_joined_late_is_read(tmp_path):
    pages = _split(_ogg('VORBIS', times=12))
    path = tmp_path / 'a.ogg'
    headers = [page for page in pages if page[6:14] == bytes(8)]
    path.write_bytes(b''.join(headers + pages[len(pages) // 2 :]))
    wav = audio.load(path, 16000)
    assert 0.25 < len(wav) / (12 * 25280) < 0.75
    assert np.sqrt(np.mean(wav**2)) > 0.02  # of speech
