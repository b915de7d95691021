"""The squared sine against numpy's in float64."""

import jax
import numpy as np
import pytest

from mossjax.ops.sine import sin_squared


@pytest.mark.parametrize(('size', 'error'), [(1.5, 3e-7), (100, 3e-7), (10_000, 3e-7), (1e5, 2e-6)])
def test_values(size, error, rng):
    x = rng.uniform(-size, size, 100_000).astype('f')
    wanted = np.square(np.sin(x.astype('d')))
    np.testing.assert_allclose(sin_squared(x), wanted, rtol=0, atol=error)


def test_small_ones_have_all_their_digits():
    x = np.array([0, 1e-10, -3e-5, 0.02], 'f')
    np.testing.assert_allclose(sin_squared(x), np.square(np.sin(x.astype('d'))), rtol=2e-7)
    assert np.isnan(sin_squared(np.array([np.nan, np.inf], 'f'))).all()


@pytest.mark.parametrize(('size', 'error'), [(1.5, 2e-7), (30, 2e-6), (10_000, 2e-6)])
def test_gradient(size, error, rng):
    x = rng.uniform(-size, size, 10_000).astype('f')
    found = jax.grad(lambda x: sin_squared(x).sum())(x)
    np.testing.assert_allclose(found, np.sin(2 * x.astype('d')), rtol=0, atol=error)
