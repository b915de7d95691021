"""Sound of other voices in the time of a recording: where the phones are, what is written."""

import json
import os

import numpy as np
import pytest
import soundfile

from experiments.nano import doubles
from mossjax.data.codes import CodesStore
from mossjax.data.manifest import Recording, read_recordings

RATE = 16_000


def tones(pieces) -> np.ndarray:
    """Sines of (Hz, seconds), one after the other."""
    return np.concatenate([
        0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)
        for hertz, seconds in pieces
    ]).astype('f')  # fmt: skip


def loudest(wave: np.ndarray) -> float:
    """Hz."""
    power = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 1 << 16))
    return np.argmax(power) * RATE / (1 << 16)


def test_pieces_move_and_pitch_stays():
    wave = tones([(300, 0.4), (800, 0.6)])
    moved = doubles.stretched(wave, np.array([0, 6400, 16000]), np.array([0, 11200, 14400]))
    assert abs(len(moved) - 14400) <= doubles.HOP
    for begin, end, hertz in ((800, 10400, 300), (12000, 14000, 800)):
        part = moved[begin:end]
        assert loudest(part) == pytest.approx(hertz, abs=3)
        assert np.sqrt(np.mean(part**2)) == pytest.approx(0.5 / 2**0.5, rel=0.05)


@pytest.fixture
def spoken(tmp_path):
    """(recordings, their codes): one sentence by three voices, slt's of two rates; one by one."""
    found, lines = [], []

    def say(name, speaker, text, rate, level, ends, kind='question'):
        labels = tuple(zip(('pau', 'a', 'pau'), ends, strict=True))
        wave = np.zeros(round(ends[-1] * RATE))
        at = np.arange(round(ends[0] * RATE), round(ends[1] * RATE))
        wave[at] = level * np.sin(2 * np.pi * 400 / RATE * at)
        soundfile.write(tmp_path / name, wave, RATE, subtype='FLOAT')
        found.append(Recording(
            str(tmp_path / name), text=text, speaker=speaker, times=labels,
            extra={'rate': rate, 'kind': kind},
        ))  # fmt: skip
        count = -(-round(ends[-1] * RATE) // 1280)
        for version in (0, 1):
            codes = [100 * (1 + version) + len(found)] * count
            lines.append({'path': str(tmp_path / name), 'version': version, 'codes': codes})

    say('slow.wav', 'slt', 'one', 1.2, 0.1, (0.16, 0.96, 1.12))
    say('fast.wav', 'slt', 'one', 0.8, 0.2, (0.08, 0.4, 0.48), 'answer')
    say('rms.wav', 'rms', 'one', 0.9, 0.3, (0.16, 0.48, 0.61))
    say('awb.wav', 'awb', 'one', 1.2, 0.4, (0.24, 0.64, 0.72))
    say('alone.wav', 'awb', 'two', 1.0, 0.5, (0.08, 0.16, 0.32))
    (tmp_path / 'codes.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return found, CodesStore.open(tmp_path / 'codes.jsonl')


def test_others_speak_in_the_time_of_the_recording(spoken, tmp_path):
    recordings, codes = spoken
    # One for each question that somebody else says too, both others for the answer.
    assert doubles.write_doubles(recordings, codes, tmp_path) == 5
    found = read_recordings(tmp_path / 'doubles.jsonl')
    store = CodesStore.open(tmp_path / 'doubles_codes.jsonl')
    assert found[:5] == recordings
    by_codes = {int(codes.versions(r.audio)[0].codes[0]): r for r in recordings}
    levels = {'slow.wav': 0.1, 'fast.wav': 0.2, 'rms.wav': 0.3, 'awb.wav': 0.4}
    heard = []
    for double in found[5:]:
        (version,) = store.versions(double.audio)
        of = by_codes[int(version.codes[0])]
        np.testing.assert_array_equal(version.codes, codes.versions(of.audio)[0].codes)
        assert (double.text, double.times) == (of.text, of.times)
        assert double.extra['kind'] == of.extra['kind'] + '_double'
        wave, rate = soundfile.read(double.audio)
        assert rate == RATE and len(wave) == 1280 * len(version.codes)
        begin, end = (round(of.times[i][1] * RATE) for i in (0, 1))
        voiced = wave[begin + 400 : end - 400]
        assert loudest(voiced) == pytest.approx(400, abs=3)
        level = np.sqrt(2 * np.mean(voiced**2))
        silence = np.concatenate([wave[: begin - 400], wave[end + 400 :]])
        assert np.abs(silence).max(initial=0) < 0.05 * level
        spoken_by = min(levels, key=lambda name: abs(levels[name] - level))
        assert level == pytest.approx(levels[spoken_by], rel=0.05)
        heard.append((os.path.basename(of.audio), double.speaker, spoken_by))
    assert len(set(heard)) == 5
    for name, speaker, spoken_by in heard:
        # Of slt's two, the one at the rate nearer to the recording's.
        nearest = {'rms.wav': 'fast.wav', 'awb.wav': 'slow.wav'}.get(name)
        assert spoken_by == (nearest if speaker == 'slt' else f'{speaker}.wav')
    assert {x[1] for x in heard if x[0] == 'fast.wav'} == {'rms', 'awb'}
    assert {x[0] for x in heard} == set(levels)


def test_what_was_interrupted_goes_on(spoken, tmp_path, monkeypatch):
    recordings, codes = spoken
    doubles.write_doubles(recordings, codes, tmp_path)
    files = sorted((tmp_path / 'doubles').glob('*'))
    whole = {path: path.read_bytes() for path in [*files, *tmp_path.glob('doubles*.jsonl')]}
    for path in [*files[2:], *tmp_path.glob('doubles*.jsonl')]:
        path.unlink()
    warped, made = doubles.warped, []
    monkeypatch.setattr(doubles, 'warped', lambda *args: made.append(args) or warped(*args))
    doubles.write_doubles(recordings, codes, tmp_path)
    assert len(made) == 3
    assert {path: path.read_bytes() for path in whole} == whole
