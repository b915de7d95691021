"""Codes of a recording as other voices say it: where the phones are, what the store has."""

import json

import numpy as np
import pytest
import soundfile

from experiments.nano import doubles
from mossjax.data.codes import CodesStore
from mossjax.data.manifest import Recording

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


class Louder:
    """Codes that say how loud each 80 ms are; ends after `most` sentences."""

    def __init__(self, most: int = 1000):
        self.most = most

    def encode(self, waves):
        found = []
        for wave in waves:
            self.most -= 1
            if self.most < 0:
                raise KeyboardInterrupt
            pieces = np.pad(wave, (0, -len(wave) % 1280)).reshape(-1, 1280)
            found.append((1000 * np.abs(pieces).max(axis=1)).astype(np.int32))
        return found


@pytest.fixture
def spoken(tmp_path):
    """(recordings, their codes): one sentence by three voices, slt's of two rates; one by one."""
    found = []

    def say(name, speaker, text, rate, level, ends):
        labels = tuple(zip(('pau', 'a', 'pau'), ends, strict=True))
        wave = np.zeros(round(ends[-1] * RATE))
        at = np.arange(round(ends[0] * RATE), round(ends[1] * RATE))
        wave[at] = level * np.sin(2 * np.pi * 400 / RATE * at)
        soundfile.write(tmp_path / name, wave, RATE, subtype='FLOAT')
        found.append(Recording(
            str(tmp_path / name), text=text, speaker=speaker, times=labels, extra={'rate': rate}
        ))  # fmt: skip

    say('slow.wav', 'slt', 'one', 1.2, 0.1, (0.16, 0.96, 1.12))
    say('fast.wav', 'slt', 'one', 0.8, 0.2, (0.08, 0.4, 0.48))
    say('rms.wav', 'rms', 'one', 0.9, 0.3, (0.16, 0.48, 0.64))
    say('awb.wav', 'awb', 'one', 1.2, 0.4, (0.24, 0.64, 0.72))
    say('alone.wav', 'awb', 'two', 1.0, 0.5, (0.08, 0.16, 0.32))
    lines = [
        {'path': r.audio, 'codes': Louder().encode([soundfile.read(r.audio)[0]])[0].tolist()}
        for r in found
    ]
    (tmp_path / 'codes.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return found, CodesStore.open(tmp_path / 'codes.jsonl')


def test_others_speak_in_the_time_of_the_recording(spoken, tmp_path):
    recordings, codes = spoken
    path = tmp_path / 'doubles.jsonl'
    assert doubles.write_doubles(Louder(), recordings, codes, path) == 8
    found = {r.audio.split('/')[-1]: CodesStore.open(path).versions(r.audio) for r in recordings}
    for r in recordings:
        own = CodesStore.open(path).versions(r.audio)[0].codes
        np.testing.assert_array_equal(own, codes.versions(r.audio)[0].codes)
    assert len(found['alone.wav']) == 1
    # Of slt's two the one at the nearer rate, as loud as it is there, where rms and awb speak.
    for name, levels, voiced in (
        ('rms.wav', {200, 400}, slice(2, 6)), ('awb.wav', {100, 300}, slice(3, 8)),
        ('slow.wav', {300, 400}, slice(2, 12)),
    ):  # fmt: skip
        middles = set()
        for version in found[name][1:]:
            assert len(version.codes) == len(found[name][0].codes)
            within = version.codes[voiced][1:-1]
            middles.add(int(np.round(within.mean(), -2)))
            assert within.min() > 4 * max(version.codes[0], version.codes[-1])
        assert middles == levels, (name, middles)


def test_what_was_interrupted_goes_on(spoken, tmp_path, monkeypatch):
    recordings, codes = spoken
    monkeypatch.setattr(doubles, 'AT_ONCE', 2)
    whole, halted = tmp_path / 'whole.jsonl', tmp_path / 'halted.jsonl'
    doubles.write_doubles(Louder(), recordings, codes, whole)
    with pytest.raises(KeyboardInterrupt):
        doubles.write_doubles(Louder(4), recordings, codes, halted)
    with halted.open('a') as store:
        store.write('{"path": "slow.w')
    doubles.write_doubles(Louder(), recordings, codes, halted)
    assert halted.read_bytes() == whole.read_bytes()
