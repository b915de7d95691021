"""Spectral pieces against librosa and against numpy's own transforms."""

import jax
import librosa
import numpy as np
import pytest
from transformers.audio_utils import mel_filter_bank

from mossjax.ops import spectral


@pytest.mark.parametrize(
    ('rate', 'n_fft', 'n_mels', 'f_max'), [(16000, 400, 128, 8000), (24000, 1920, 80, 8000)]
)
def test_mel_filters_are_those_of_transformers(rate, n_fft, n_mels, f_max):
    theirs = mel_filter_bank(
        n_fft // 2 + 1, n_mels, 0.0, f_max, rate, norm='slaney', mel_scale='slaney'
    )
    np.testing.assert_allclose(
        spectral.mel_filters(rate, n_fft, n_mels, 0.0, f_max), theirs, rtol=1e-10, atol=1e-14
    )


@pytest.mark.parametrize(('length', 'size', 'hop'), [(1680, 400, 160), (401, 400, 160), (50, 7, 9)])
def test_frames_are_the_cuts_of_the_signal(length, size, hop):
    x = np.random.default_rng(0).normal(size=(2, length)).astype(np.float32)
    expected = np.stack([x[:, i : i + size] for i in range(0, length - size + 1, hop)], axis=1)
    np.testing.assert_array_equal(spectral.frames(x, size, hop), expected)


def test_centred_stft_matches_librosa():
    x = np.random.default_rng(1).normal(size=2560).astype(np.float32)
    theirs = librosa.stft(x.astype(np.float64), n_fft=400, hop_length=160, pad_mode='reflect')
    ours = jax.jit(
        lambda x: spectral.stft(
            x, n_fft=400, hop=160, window=spectral.hann(400), pad=(200, 200)
        )
    )(x)
    np.testing.assert_allclose(ours, theirs.T, atol=2e-5)
    np.testing.assert_allclose(spectral.power(ours), np.abs(theirs.T) ** 2, rtol=1e-4, atol=1e-3)


def test_hann_matches_librosa():
    np.testing.assert_allclose(
        spectral.hann(400), librosa.filters.get_window('hann', 400), atol=1e-15
    )
