"""Loudness against what ITU-R BS.1770-4 says of its own filters and of a sine."""

import numpy as np

from mossjax.infer import loudness


def sine(rate, seconds, level=1.0):
    return level * np.sin(2 * np.pi * 997 * np.arange(round(rate * seconds)) / rate)


def test_the_filters_are_those_of_the_standard():
    """Tables 1 and 2, coefficients at 48 kHz."""
    b, a = loudness._shelf(48000)
    np.testing.assert_allclose(b, [1.53512485958697, -2.69169618940638, 1.19839281085285], 1e-12)
    np.testing.assert_allclose(a, [1.0, -1.69065929318241, 0.73248077421585], 1e-12)
    b, a = loudness._high_pass(48000)
    np.testing.assert_allclose(b, [1.0, -2.0, 1.0])
    np.testing.assert_allclose(a, [1.0, -1.99004745483398, 0.99007225036621], 1e-12)


def test_a_sine_of_997_hz_at_full_scale_has_minus_3_01():
    assert abs(loudness.integrated(sine(48000, 2), 48000) + 3.01) < 0.01
    assert abs(loudness.integrated(sine(24000, 2, 0.1), 24000) + 23.01) < 0.05


def test_pauses_and_what_is_far_quieter_do_not_count():
    loud = loudness.integrated(sine(24000, 4), 24000)
    for quiet in (np.zeros(96000), sine(24000, 4, 0.05)):
        both = loudness.integrated(np.concatenate([sine(24000, 4), quiet]), 24000)
        assert abs(both - loud) < 0.25  # a few blocks have both
    half = loudness.integrated(np.concatenate([sine(24000, 20), sine(24000, 20, 0.5)]), 24000)
    assert abs(half - loud - 10 * np.log10((1 + 0.25) / 2)) < 0.05


def test_short_and_silent():
    assert abs(loudness.integrated(sine(24000, 0.08), 24000) + 3.0) < 0.5
    for silence in (np.zeros(0), np.zeros(100), np.full(48000, 1e-7)):
        assert loudness.integrated(silence, 24000) == -np.inf
