"""Griffin-Lim: real speech through mel and back, exact lengths, padding without effect."""

import jax
import numpy as np
import pytest

from mossjax.models.flow.mel import filters, log_mel
from mossjax.models.vocoder.griffin_lim import griffin_lim, magnitudes

KEY = jax.random.key(0)


@pytest.fixture(scope='module')
def run():
    return jax.jit(griffin_lim)


@pytest.fixture(scope='module')
def mel(golden):
    wave = golden('decoder/mel24.safetensors')['wav24_int16'][:, :48000]
    return np.asarray(log_mel(wave.astype(np.float32) / 32768))


def test_speech_comes_back(run, mel):
    wave = np.asarray(run(mel, np.array([100]), KEY))
    assert wave.shape == (1, 48000) and np.abs(wave).max() < 1
    again = np.asarray(log_mel(wave))
    assert np.corrcoef(again.ravel(), mel.ravel())[0, 1] > 0.98
    assert np.abs(again - mel).mean() < 0.2
    # Without phase search the waveform's mel is far off: the bounds above can fail.
    blind = np.asarray(griffin_lim(mel, np.array([100]), KEY, iterations=0))
    assert np.abs(np.asarray(log_mel(blind)) - mel).mean() > 0.4


def test_magnitudes_are_positive_and_fit_the_mel(mel):
    spectrum = np.asarray(magnitudes(mel))
    assert spectrum.min() >= 0
    target = np.exp(mel)
    assert np.abs(spectrum @ filters() - target).mean() < 0.01 * target.mean()


def test_same_key_same_wave_other_key_other_wave(run, mel):
    first, again = (np.asarray(run(mel, np.array([100]), KEY)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other = np.asarray(run(mel, np.array([100]), jax.random.key(1)))
    assert np.abs(other - first).max() > 0.01


def test_padding_changes_nothing(run, mel):
    exact = np.asarray(run(mel[:, :60], np.array([60]), KEY))
    rows = np.full((2, 100, 80), 2.0, np.float32)  # loud padding
    rows[0], rows[1, :60] = mel[0], mel[0, :60]
    padded = np.asarray(run(rows, np.array([100, 60]), KEY))
    np.testing.assert_allclose(padded[1, : 480 * 60], exact[0], rtol=0, atol=1e-4)
    assert not padded[1, 480 * 60 :].any()
