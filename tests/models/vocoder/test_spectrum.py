"""The vocoder's short transforms against numpy's, at the true ends of padded rows."""

import numpy as np

from mossjax.models.vocoder.hift.spectrum import analysis, mirror, synthesis

SIZES = {'n_fft': 16, 'hop': 4}


def transform(wave: np.ndarray) -> np.ndarray:
    """(w,) -> (w / 4 + 1, 18): frames around every fourth sample, ends reflected, float64."""
    padded = np.pad(wave.astype(np.float64), 8, mode='reflect')
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(16) / 16)
    frames = np.stack([padded[i : i + 16] * window for i in range(0, len(padded) - 15, 4)])
    spectrum = np.fft.rfft(frames)
    return np.concatenate([spectrum.real, spectrum.imag], axis=1)


def test_rows_are_reflected_at_their_own_end(rng):
    x = rng.normal(size=(2, 40)).astype(np.float32)
    found = np.asarray(mirror(x, np.array([40, 24]), 8))
    np.testing.assert_array_equal(found[0], np.pad(x[0], 8, mode='reflect'))
    np.testing.assert_array_equal(found[1, :40], np.pad(x[1, :24], 8, mode='reflect'))
    assert not found[1, 40:].any()


def test_analysis(rng):
    x = rng.normal(size=(2, 80)).astype(np.float32)
    rubbish = x.copy()
    rubbish[1, 48:] = np.nan
    found = np.asarray(analysis(rubbish, np.array([80, 48]), **SIZES))
    np.testing.assert_allclose(found[0], transform(x[0]), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found[1, :13], transform(x[1, :48]), rtol=0, atol=1e-5)
    assert not found[1, 13:].any()


def test_synthesis_undoes_analysis_to_the_last_sample(rng):
    x = rng.normal(size=(2, 80)).astype(np.float32)
    lengths = np.array([80, 48])
    back = np.asarray(synthesis(analysis(x, lengths, **SIZES), lengths, **SIZES))
    np.testing.assert_allclose(back[0], x[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(back[1, :48], x[1, :48], rtol=0, atol=1e-5)
    assert not back[1, 48:].any()


def test_outer_bins_have_no_imaginary_part(rng):
    """What stands there is ignored, as by every real inverse transform."""
    spectrum = rng.normal(size=(1, 21, 18)).astype(np.float32)
    other = spectrum.copy()
    other[..., [9, 17]] += 5
    lengths = np.array([80])
    first, second = (synthesis(s, lengths, **SIZES) for s in (spectrum, other))
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-5)
