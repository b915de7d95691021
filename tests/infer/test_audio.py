"""Loading and saving audio: real speech, odd formats, and every refusal with its remedy."""

import os
import re
import struct
import threading

import numpy as np
import pytest
import soundfile

from mossjax.errors import InputError
from mossjax.infer import audio
from mossjax.infer.formats import source
from tests import sounds

PCM = sounds.question()
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


@pytest.mark.parametrize(
    'name', ['a.wav', 'a.flac', 'a.ogg', 'a.mp3', 'a b é.wav', 'x' * 251 + '.wav']
)
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
    'missing': (lambda path: None, ': no such file; check the path'),
    'a link to itself': (lambda path: path.symlink_to(path), ': a symbolic link that leads to'),
    'folder': (lambda path: path.mkdir(), ' is a folder; give the name of a file in it'),
    'empty file': (lambda path: path.touch(), ' is empty; record or copy'),
    'not audio': (lambda path: path.write_text('hello ' * 99), ' is not audio .* give a WAV'),
    'no samples': (_samples([]), ' holds no samples; record'),
    'too short': (_samples(np.zeros(159)), ' is 9.9 ms long.* give a longer'),
    'nan': (_samples([0.0] * 200 + [np.nan]), ' .*index 200.* export it again'),
    'infinite': (_samples([-np.inf] + [0.0] * 200), ' .*index 0.* export it again'),
    'integers as floats': (_samples([9000.0] * 200), ' reaches 9000 .* divide'),
    'three hours': (_three_hours, ' is longer than 30 minutes, the limit; cut it'),
}


@pytest.mark.parametrize('make, message', REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals_name_the_file_and_the_remedy(tmp_path, make, message):
    path = tmp_path / 'recording.wav'
    make(path)
    with pytest.raises(InputError, match=f'recording.wav{message}'):
        audio.load(path, 16000)


def test_samples_without_a_header_are_refused_with_the_command_for_such(tmp_path):
    path = tmp_path / 'samples.raw'
    path.write_bytes(bytes(3200))
    with pytest.raises(InputError, match='samples.raw is not .* -f s16le -ar RATE -ac CHANNELS'):
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


@pytest.mark.parametrize('name', [b'\xff\xfe.wav', 'é\u2028\n.wav'.encode(), b'named.raw'])
def test_names_of_any_bytes(tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), name)
    with open(path, 'wb') as file:
        file.write(sounds.riff(PCM.tobytes()))
    np.testing.assert_array_equal(audio.load(os.fsdecode(path), 16000), PCM / np.float32(32768))
    with open(path, 'wb') as file:
        file.write(b'no audio')
    with pytest.raises(InputError) as refused:
        audio.load(os.fsdecode(path), 16000)
    assert str(refused.value).encode()  # can be printed


def test_a_pipe_is_read_once(tmp_path):
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[sounds.riff(PCM.tobytes(), size=0)])
    writer.start()
    piped = audio.Source.of(pipe)
    writer.join()
    assert audio.read_header(piped).frames == len(PCM)
    np.testing.assert_array_equal(audio.load(piped, 16000), PCM / np.float32(32768))


def test_pipes_that_give_nothing_or_too_much(tmp_path, monkeypatch):
    with pytest.raises(InputError, match='/dev/null is empty'):
        audio.load('/dev/null', 16000)
    monkeypatch.setattr(source, 'MOST_PIPED', 1 << 20)
    with pytest.raises(InputError, match='/dev/zero gives more than 1 MiB'):
        audio.load('/dev/zero', 16000)


@pytest.mark.parametrize('quiet, sound, said', [
    (0.0, [0.0, 0.3], r"on channel 2 .the right one.* ffmpeg -i .*a.wav -af 'pan=mono\|c0=c1'"),
    (1e-3, [1e-3, 0.3], 'channel 2 .the right one'),  # hum of an open input
    (0.0, [0.0, 0.0, 0.0, 0.3, 0.1, 0.0], 'of its 6 channels is heard and is silent.* channel 4'),
    (0.1, [0.1, 0.3], ''),
    (0.3, [0.3, 0.0], ''),
    (0.0, [0.0, 0.0], ''),
])  # fmt: skip
def test_a_first_channel_of_silence_is_said(tmp_path, rng, quiet, sound, said, caplog):
    path = tmp_path / 'a.wav'
    soundfile.write(path, _tone(16000)[:, None] * sound, 16000, subtype='FLOAT')
    wav = audio.load(path, 16000)
    np.testing.assert_allclose(np.abs(wav).max(), quiet / 2, atol=1e-6)
    if said:
        assert re.search(f'a.wav: the first .*{said}', sounds.said(caplog))
    else:
        assert not caplog.records


@pytest.mark.parametrize('name, magic, error', [
    ('a.wav', b'RIFF', 0), ('a.WAV', b'RIFF', 0), ('a.flac', b'fLaC', 0), ('a.ogg', b'OggS', 0.1),
    ('a.opus', b'OggS', 0.3), ('a.mp3', b'\xff\xf3', 0.1),
])  # fmt: skip
def test_the_suffix_decides_what_is_written(tmp_path, name, magic, error):
    path = tmp_path / name
    audio.check_writable_suffix(path)
    wav = PCM / np.float32(32768)
    audio.save(path, wav, 24000)
    assert path.read_bytes().startswith(magic)
    read = audio.load(path, 24000)
    assert len(read) == len(wav)
    assert np.sqrt(np.mean((read - wav) ** 2) / np.mean(wav**2)) <= error


@pytest.mark.parametrize('name', ['a.m4a', 'a.txt', 'a', 'wav', '.wav', 'a.wav.bak'])
def test_other_suffixes_are_not_written(tmp_path, name):
    with pytest.raises(InputError, match=f'--out .*{name}: audio is written as .wav, .flac'):
        audio.check_writable_suffix(tmp_path / name, '--out')
    with pytest.raises(InputError, match='audio is written as'):
        audio.save(tmp_path / name, np.zeros(100), 16000)
    assert not any(tmp_path.iterdir())


def test_a_format_that_cannot_hold_the_rate_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match='a.opus cannot be written at 44100 Hz .* write a .wav'):
        audio.save(tmp_path / 'a.opus', np.zeros(100), 44100)
    assert not any(tmp_path.iterdir())


def test_a_pipe_gets_wav(tmp_path):
    pipe, got = tmp_path / 'pipe', []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    audio.check_writable_suffix(pipe)
    audio.save(pipe, PCM / 32768, 16000)
    reader.join()
    np.testing.assert_array_equal(sounds.decoded(got[0]), PCM / np.float32(32768))
