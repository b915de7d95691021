"""A sound file that grows: what a player finds at any moment, against libsndfile."""

import os
import threading

import numpy as np
import pytest
import soundfile

from mossjax.errors import InputError
from mossjax.infer import audio
from mossjax.infer.growing import GrowingSound
from tests.cli.test_bad_input import room_for_files_of

WAVE = np.float32(0.7 * np.sin(np.arange(24000) / 7))


def test_a_wav_can_be_played_after_each_piece(tmp_path):
    path = tmp_path / 'new' / 'a.wav'
    with GrowingSound(path, 24000) as sound:
        sound.write(WAVE[:0])
        assert not path.exists()  # nothing was said
        for end in (1, 480, 10000, 24000):
            sound.write(WAVE[sound.samples : end])
            read, rate = soundfile.read(path, dtype='int16')
            np.testing.assert_array_equal(read, audio.pcm16(WAVE[:end]))
            assert rate == 24000
    audio.save(tmp_path / 'b.wav', WAVE, 24000)
    assert path.read_bytes() == (tmp_path / 'b.wav').read_bytes()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize('name', ['a.flac', 'a.ogg', 'a.mp3'])
def test_other_formats_are_whole_in_the_end(name, tmp_path):
    with GrowingSound(tmp_path / name, 24000) as sound:
        for start in range(0, 24000, 5000):
            sound.write(WAVE[start : start + 5000])
    read = audio.load(tmp_path / name, 24000)
    assert abs(len(read) - 24000) < 2000
    error = read[4000:16000] - WAVE[4000:16000]
    assert np.sqrt((error**2).mean()) < 0.02


def test_what_stood_there_goes_with_the_first_sound_and_errors_leave_nothing(tmp_path):
    path = tmp_path / 'a.wav'
    path.write_bytes(b'before')
    with pytest.raises(RuntimeError), GrowingSound(path, 24000):
        raise RuntimeError  # before anything was said
    assert path.read_bytes() == b'before'
    with pytest.raises(InputError, match='no number'), GrowingSound(path, 24000) as sound:
        sound.write(WAVE)
        sound.write(np.float32([np.nan]))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), GrowingSound(path, 24000) as sound:
        sound.write(WAVE[:5000])
        raise KeyboardInterrupt
    assert len(audio.load(path, 24000)) == 5000
    with pytest.raises(InputError, match='audio is written as'):
        GrowingSound(tmp_path / 'a.doc', 24000)


@pytest.mark.parametrize('name', ['a.wav', 'a.flac', 'a.mp3'])
def test_a_disk_that_fills_up_leaves_nothing(name, tmp_path):
    noise = np.float32(np.random.default_rng(0).normal(size=24000) / 9)
    before = r'before is unchanged'
    with room_for_files_of(30_000):
        (tmp_path / 'grows').mkdir()
        with pytest.raises(InputError, match='cannot be written: File too large') as refused:
            with GrowingSound(tmp_path / 'grows' / name, 24000) as sound:
                for start in range(0, 10 * 24000, 3000):
                    sound.write(noise[start % 24000 :][:3000])
        assert sound.samples > 0 and before not in str(refused.value)
        with pytest.raises(InputError, match=before):
            audio.save(tmp_path / name, np.tile(noise, 10), 24000)
    assert list(tmp_path.iterdir()) == [tmp_path / 'grows']
    assert list((tmp_path / 'grows').iterdir()) == []


def test_a_format_that_cannot_be_begun_leaves_nothing(tmp_path):
    (tmp_path / 'a.mp3').write_bytes(b'before')
    with pytest.raises(InputError, match='cannot be written at 96000 Hz'):
        with GrowingSound(tmp_path / 'a.mp3', 96000) as sound:
            sound.write(WAVE)
    assert list(tmp_path.iterdir()) == [tmp_path / 'a.mp3']
    assert (tmp_path / 'a.mp3').read_bytes() == b'before'


def test_a_long_reply_comes_in_one_piece(tmp_path):
    """Vorbis: libsndfile ends the process if it is given a minute or more at once."""
    with GrowingSound(tmp_path / 'a.ogg', 24000) as sound:
        sound.write(np.tile(WAVE, 120))
    assert len(audio.load(tmp_path / 'a.ogg', 24000)) == 120 * 24000


def test_a_pipe_gets_all_at_the_end(tmp_path):
    os.mkfifo(tmp_path / 'a.wav')
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / 'a.wav').read_bytes()))
    reader.start()
    with GrowingSound(tmp_path / 'a.wav', 24000) as sound:
        sound.write(WAVE[:5000])
        sound.write(WAVE[5000:])
    reader.join(60)
    audio.save(tmp_path / 'b.wav', WAVE, 24000)
    assert found == [(tmp_path / 'b.wav').read_bytes()]
