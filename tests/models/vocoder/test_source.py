"""The source's phases over minutes, and noise that belongs to a sample wherever a cut begins."""

import jax
import numpy as np
import pytest

from mossjax.models.vocoder.hift import source
from mossjax.models.vocoder.hift.config import HiftConfig

CONFIG = HiftConfig()


def exact_phases(f0: np.ndarray, harmonics: int) -> np.ndarray:
    """(t,) Hz -> (h, 480 t) cycles in float64, as the specification has them."""
    order = np.arange(1, harmonics + 1)[:, None]
    rate = f0.astype(np.float64) * order / 24000 % 1
    middle = np.cumsum(480 * rate, axis=1)
    at = np.maximum((np.arange(480 * len(f0)) + 0.5) / 480 - 0.5, 0)
    return np.stack([np.interp(at, np.arange(len(f0)), row) for row in middle])


@pytest.mark.parametrize('kind', ['speech', 'constant', 'high'])
def test_phases_after_five_minutes_are_those_of_double_precision(kind, rng):
    """Upstream's float32 sums are off by 0.046 of a unit sine after half a minute."""
    t = 15000
    f0 = {
        'speech': 120 + 80 * np.sin(np.arange(t) / 40) + rng.normal(0, 3, t),
        'constant': np.full(t, 233.3333),
        'high': rng.uniform(0, 12000, t),  # beyond any voice; harmonics fold back
    }[kind].astype(np.float32)
    f0[100:200] = 0
    run = jax.jit(lambda f0: source.phases(f0, 9)[0, :, -4800:])
    found = np.asarray(run(f0[None]), np.float64)
    expected = exact_phases(f0, 9)[:, -4800:]
    difference = np.sin(2 * np.pi * found) - np.sin(2 * np.pi * expected)
    # High harmonics of high pitches turn 0.9 of a cycle a sample; float32 has that to 1e-7.
    assert np.abs(difference).max() < {'high': 1e-2}.get(kind, 5e-4)


def test_turns_wrap_without_a_seam():
    """Sums of the integers are the same from any frame on, whatever came before."""
    f0 = np.linspace(50, 900, 400, dtype=np.float32)
    turns = np.asarray(source.turns(f0[None])[0])
    exact = np.floor(f0.astype(np.float64) / 50 * 2**32) % 2**32
    np.testing.assert_allclose(turns.astype(np.int64) % 2**32, exact, rtol=0, atol=1)


def test_unvoiced_frames_are_noise_of_a_third_of_the_sine():
    f0 = np.array([[9.0, 11.0]], np.float32)
    noise = np.ones((1, 9, 960), np.float32)
    found = np.asarray(source.excitation(CONFIG, f0, noise))
    np.testing.assert_allclose(found[..., :480], 0.1 / 3, rtol=1e-6)
    silent = np.asarray(source.excitation(CONFIG, f0, 0 * noise))
    np.testing.assert_allclose(found[..., 480:] - silent[..., 480:], 0.003, rtol=1e-3)


def test_noise_of_a_cut_is_the_cut_of_the_noise():
    key = jax.random.key(7)
    whole = np.asarray(source.noise(CONFIG, key, 20))
    np.testing.assert_array_equal(source.noise(CONFIG, key, 6, start=9), whole[..., 9 * 480 : 7200])
    assert whole.shape == (1, 9, 9600)
    assert abs(whole.mean()) < 0.02 and abs(whole.std() - 1) < 0.02
    channels = np.corrcoef(whole[0])
    assert np.abs(channels - np.eye(9)).max() < 0.05
