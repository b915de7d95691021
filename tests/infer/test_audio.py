"""Loading and saving audio: real speech, odd formats, and every refusal with its remedy."""

import struct

import numpy as np
import pytest
import soundfile

from mossjax.errors import InputError
from mossjax.infer import audio

RATES = [8000, 11025, 16000, 22050, 24000, 44100, 48000]


def _tone(rate, seconds=0.25, hz=440.0):
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize('rate', RATES)
def test_any_rate_gives_the_same_tone(tmp_path, rate):
    path = tmp_path / 'tone.wav'
    soundfile.write(path, _tone(rate), rate, subtype='FLOAT')
    wav = audio.load(path, 16000)
    expected = _tone(16000, 0.3)[: len(wav)]
    assert wav.dtype == np.float32
    assert len(wav) == -(-int(rate * 0.25) * 16000 // rate)
    np.testing.assert_allclose(wav[200:-200], expected[200:-200], atol=2e-3)


@pytest.mark.parametrize('name, rate', [('prompt_en_1s.flac', 44100), ('prompt_cn_1s.flac', 48000)])
def test_real_speech_equals_the_interpolation_formula(golden, name, rate):
    path = golden(f'audio/{name}')
    source = soundfile.read(path, dtype='float64')[0]
    wav = audio.load(path, 16000)
    assert len(wav) == 16000
    cutoff = 0.99 * 16000
    instants = np.array([0, 1, 777, 8000, 12345, 15999])
    t = (np.arange(len(source)) / rate - instants[:, None] / 16000) * cutoff
    window = np.where(np.abs(t) < 6, np.cos(np.pi * t / 12) ** 2, 0.0)
    expected = (source * np.sinc(t) * window).sum(axis=1) * cutoff / rate
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(wav[instants], expected, rtol=0, atol=1e-6)


def test_the_first_channel_is_taken_not_the_mean(tmp_path):
    path = tmp_path / 'stereo.wav'
    left = _tone(16000)
    soundfile.write(path, np.stack([left, -left], axis=1), 16000, subtype='FLOAT')
    np.testing.assert_allclose(audio.load(path, 16000), left, atol=1e-7)


@pytest.mark.parametrize('name', ['a.wav', 'a.flac', 'a.ogg', 'a.mp3', 'a b é.wav'])
def test_formats_and_names(tmp_path, name):
    path = tmp_path / name
    soundfile.write(path, _tone(16000, 1.0), 16000)
    wav = audio.load(path, 16000)
    peak_hz = np.argmax(np.abs(np.fft.rfft(wav))) * 16000 / len(wav)
    assert abs(peak_hz - 440) < 2


def test_pcm_survives_load_and_save_unchanged(tmp_path, rng):
    path = tmp_path / 'new' / 'folder' / 'noise.wav'
    pcm = rng.integers(-32768, 32768, 4000).astype(np.int16)
    audio.save(path, pcm / 32768, 24000)
    read, rate = soundfile.read(path, dtype='int16')
    np.testing.assert_array_equal(read, pcm)
    assert rate == 24000
    np.testing.assert_array_equal(audio.load(path, 24000), (pcm / 32768).astype(np.float32))


def test_save_clips_instead_of_wrapping(tmp_path):
    audio.save(tmp_path / 'loud.wav', np.array([1.5, -1.5, 0.25]), 16000)
    read, _ = soundfile.read(tmp_path / 'loud.wav', dtype='int16')
    np.testing.assert_array_equal(read, [32767, -32768, 8192])


@pytest.mark.parametrize('wav', [np.zeros((2, 100)), np.array([0.0, np.nan])])
def test_a_refused_save_leaves_the_old_file_and_nothing_else(tmp_path, wav):
    path = tmp_path / 'a.wav'
    path.write_bytes(b'before')
    with pytest.raises(InputError, match='a.wav'):
        audio.save(path, wav, 16000)
    assert path.read_bytes() == b'before'
    assert [p.name for p in tmp_path.iterdir()] == ['a.wav']


def _three_hours(path):
    """A header that promises three hours of 8 kHz silence, in a sparse file."""
    size = 3 * 3600 * 8000
    header = b'RIFF' + struct.pack('<I', 36 + size) + b'WAVEfmt ' + struct.pack(
        '<IHHIIHH', 16, 1, 1, 8000, 8000, 1, 8
    ) + b'data' + struct.pack('<I', size)
    with open(path, 'wb') as file:
        file.write(header)
        file.truncate(len(header) + size)


def _samples(wav, rate=16000):
    return lambda path: soundfile.write(path, np.asarray(wav, np.float32), rate, 'FLOAT')


REFUSALS = {
    'missing': (lambda path: None, 'does not exist; check the path'),
    'folder': (lambda path: path.mkdir(), 'is a folder; name the audio files'),
    'empty file': (lambda path: path.touch(), 'is empty; record or copy'),
    'not audio': (lambda path: path.write_text('hello ' * 99), 'is not audio .* give a WAV'),
    'no samples': (_samples([]), 'holds no samples; record'),
    'too short': (_samples(np.zeros(159)), 'is 9.9 ms long.* give a longer'),
    'nan': (_samples([0.0] * 200 + [np.nan]), '.*index 200.* export it again'),
    'infinite': (_samples([-np.inf] + [0.0] * 200), '.*index 0.* export it again'),
    'integers as floats': (_samples([9000.0] * 200), 'reaches 9000 .* divide'),
    'three hours': (_three_hours, 'is 180 minutes long.* cut it'),
}


@pytest.mark.parametrize('make, message', REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals_name_the_file_and_the_remedy(tmp_path, make, message):
    path = tmp_path / 'recording.wav'
    make(path)
    with pytest.raises(InputError, match=f'recording.wav {message}'):
        audio.load(path, 16000)


def test_headerless_samples_are_refused(tmp_path):
    """soundfile asks for a format when a name ends so."""
    path = tmp_path / 'samples.raw'
    path.write_bytes(bytes(3200))
    with pytest.raises(InputError, match='samples.raw is headerless audio'):
        audio.load(path, 16000)


def test_a_file_that_breaks_off_is_refused(tmp_path, golden):
    whole = golden('audio/prompt_en_1s.flac').read_bytes()
    path = tmp_path / 'cut.flac'
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match='cut.flac'):
        audio.load(path, 16000)


def test_ten_milliseconds_are_enough(tmp_path):
    path = tmp_path / 'frame.wav'
    _samples(np.full(80, 0.1), 8000)(path)
    assert len(audio.load(path, 16000)) == 160
