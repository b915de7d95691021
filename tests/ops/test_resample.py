"""The sinc resampler against torchaudio's recorded output and against what sampling theory says."""

import numpy as np
import pytest

from mossjax.errors import InputError
from mossjax.ops.resample import resample

PAIRS = [(44100, 16000), (44100, 24000), (48000, 16000), (48000, 24000), (24000, 16000),
         (22050, 16000), (22050, 24000), (8000, 16000), (8000, 24000)]


@pytest.mark.parametrize('source, target', PAIRS)
def test_equals_torchaudio(golden, source, target):
    vectors = golden('audio/resample.npz')
    expected = vectors[f'out_{source}_to_{target}']
    actual = resample(vectors[f'in_{source}'], source, target)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('source, target', [*PAIRS, (44099, 16000), (11127, 24000)])
def test_a_tone_stays_the_same_tone(source, target):
    hz = 1000.0
    wav = np.sin(2 * np.pi * hz * np.arange(source // 4) / source)
    actual = resample(wav, source, target)
    expected = np.sin(2 * np.pi * hz * np.arange(len(actual)) / target)
    inner = slice(200, -200)
    np.testing.assert_allclose(actual[inner], expected[inner], atol=4e-3)


def test_a_tone_above_the_new_nyquist_disappears():
    wav = np.sin(2 * np.pi * 11000.0 * np.arange(48000) / 48000)
    assert np.abs(resample(wav, 48000, 16000)[200:-200]).max() < 1e-2


@pytest.mark.parametrize('samples', [0, 1, 2, 440, 441, 442, 1000])
def test_length_is_rounded_up(samples):
    assert len(resample(np.ones(samples, np.float32), 44100, 16000)) == -(-samples * 160 // 441)


def test_chunks_do_not_show(monkeypatch, rng):
    wav = rng.standard_normal(9000).astype(np.float32)
    whole = resample(wav, 44100, 16000)
    monkeypatch.setattr('mossjax.ops.resample.CHUNK', 2000)
    np.testing.assert_allclose(resample(wav, 44100, 16000), whole, rtol=0, atol=1e-6)


def test_same_rate_changes_nothing(rng):
    wav = rng.standard_normal(100).astype(np.float32)
    np.testing.assert_array_equal(resample(wav, 16000, 16000), wav)


@pytest.mark.parametrize('source, target', [(0, 16000), (16000, -1)])
def test_refuses_rates_that_are_none(source, target):
    with pytest.raises(InputError, match=f'{source} Hz'):
        resample(np.zeros(10), source, target)
