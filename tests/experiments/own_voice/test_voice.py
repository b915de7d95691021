"""A voice of one's own by one command: what it takes and what it refuses."""

import numpy as np
import pytest
import soundfile

from experiments.own_voice import voice
from mossjax.data.manifest import Recording
from mossjax.errors import InputError
from tests import tiny_codec


def folder(root, count, name='{:02d}.wav'):
    """Recordings of a tone that wavers, half a second each."""
    root.mkdir()
    t = np.arange(8000) / 16000
    for i in range(count):
        phase = 2 * np.pi * (120 + 10 * i) * t + 3 * np.sin(9 * t)
        wave = 0.3 * np.sin(phase) + 0.1 * np.sin(3 * phase)
        soundfile.write(root / name.format(i), wave, 16000)
    return str(root)


def test_every_fifth_recording_is_kept_back(tmp_path):
    learnt, kept = voice.spoken(folder(tmp_path / 'a', 11))
    assert [r.audio[-6:] for r in kept] == ['00.wav', '05.wav', '10.wav']
    assert len(learnt) == 8 and {r.speaker for r in learnt + kept} == {'own'}
    learnt, kept = voice.spoken(folder(tmp_path / 'b', 4))
    assert (len(learnt), len(kept)) == (2, 2)


def test_of_dialogues_the_assistant_is_taken(tmp_path):
    folder(tmp_path / 'a', 5, '{:03d}.user.wav')
    folder(tmp_path / 'b', 5, '{:03d}.assistant.wav')
    for file in (tmp_path / 'b').iterdir():
        file.rename(tmp_path / 'a' / file.name)
    learnt, kept = voice.spoken(str(tmp_path / 'a'))
    assert len(learnt + kept) == 5
    assert all(r.audio.endswith('assistant.wav') for r in learnt + kept)


def test_the_voice_is_that_of_the_recording_nearest_to_four_seconds(tmp_path, golden):
    """Codes of 80 ms; the others are refused as voices, one for its length, one for its silence."""
    codec = str(tiny_codec.write(tmp_path / 'codec', golden))
    t = np.arange(40 * 8000) / 8000
    files = {}
    for name, seconds, loud in (('silent', 0.4, 0), ('some', 3.2, 0.3), ('long', 36, 0.3)):
        files[name] = Recording(str(tmp_path / f'{name}.wav'))
        wave = loud * np.sin(2 * np.pi * 130 * t[: round(8000 * seconds)])
        soundfile.write(files[name].audio, wave, 8000)
    found = voice.make_voice(codec, list(files.values()))
    assert len(found.codes) == 40 and found.mel.shape == (160, 80) and np.ptp(found.xvector) > 0
    cut = voice.make_voice(codec, [files['long']])
    assert len(cut.codes) == 100  # eight seconds of it


def test_what_is_missing_is_refused_before_anything_is_written(tmp_path, golden):
    codec = tiny_codec.write(tmp_path / 'codec', golden)
    training = voice.Training(1, 1e-3)
    few = folder(tmp_path / 'few', 3)
    with pytest.raises(InputError, match='has 3 recordings of the voice; 4 are the fewest'):
        voice.teach(few, str(codec), tmp_path / 'work', tmp_path / 'out', training)
    (codec / 'flow' / 'flow.safetensors').rename(tmp_path / 'flow')
    with pytest.raises(InputError, match='neither flow.safetensors nor flow.pt'):
        voice.teach(
            folder(tmp_path / 'some', 4), str(codec), tmp_path / 'work', tmp_path / 'out', training
        )
    (codec / 'flow' / 'campplus.safetensors').unlink()
    with pytest.raises(InputError, match='has no flow/campplus'):
        voice.teach(few, str(codec), tmp_path / 'work', tmp_path / 'out', training)
    with pytest.raises(InputError, match='exists; remove it'):
        voice.teach(few, str(codec), tmp_path / 'work', codec, training)
    assert not (tmp_path / 'work').exists()
