"""Pitch of tones that are known, and the store it is kept in."""

import numpy as np
import pytest

from mossjax.data import pitch
from mossjax.data.manifest import Recording
from mossjax.errors import InputError
from mossjax.infer import audio


def test_pitch_of_a_voice_that_rises_and_stops(tmp_path):
    """Harmonics of 120 Hz, then of 180 Hz, then silence; frames at borders see both sides."""
    t = np.arange(8000) / 16000
    parts = [sum(np.sin(2 * np.pi * f * k * t) / k for k in range(1, 9)) for f in (120, 180)]
    wave = 0.2 * np.concatenate([*parts, np.zeros(4100)]).astype(np.float32)
    audio.save(tmp_path / 'a.wav', wave, 16000)
    pitch.measure([Recording(str(tmp_path / 'a.wav'))], tmp_path / 'f0.jsonl')
    (name, f0), = pitch.read(tmp_path / 'f0.jsonl').items()
    assert name == str(tmp_path / 'a.wav') and len(f0) == 63  # 20100 samples of 320, rounded up
    np.testing.assert_allclose(f0[3:22], 120, rtol=0.01)
    np.testing.assert_allclose(f0[28:47], 180, rtol=0.01)
    assert not f0[54:].any()


def test_frames_lie_where_they_are_said_to():
    """A glide, 3.6 Hz a frame: half a frame more or less would be 1.8 Hz."""
    f0 = 110 + 180 * np.arange(16000) / 16000
    phase = 2 * np.pi * np.cumsum(f0) / 16000
    wave = 0.2 * sum(np.sin(k * phase) / k for k in range(1, 9))
    at = np.arange(8, 42)
    found = pitch.pitch(wave.astype(np.float32))[at] - (110 + 180 * (at + 0.5) / 50)
    assert abs(found.mean()) < 0.6 and abs(found).max() < 3


@pytest.mark.parametrize(
    'line', ['{"path": "a.wav", "f0": [1, "2"]}', '{"f0": [1]}', '[]', '{"path": 1, "f0": []}']
)
def test_a_store_that_is_none(line, tmp_path):
    (tmp_path / 'f0.jsonl').write_text(line + '\n')
    with pytest.raises(InputError, match='f0.jsonl:1: expected .* delete the file'):
        pitch.read(tmp_path / 'f0.jsonl')


def test_a_store_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match='cannot be read: Is a directory'):
        pitch.read(tmp_path)
