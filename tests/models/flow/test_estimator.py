"""The activation of the velocity network against its definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.models.flow.estimator import mish


def test_mish_and_its_slope_are_the_definition():
    x = np.concatenate([np.linspace(-30, 30, 481), [-1e4, -90.0, 19.99, 20.01, 90.0, 1e4]])
    soft = np.logaddexp(0, x)
    slope = np.tanh(soft) + x * (1 - np.tanh(soft) ** 2) * np.exp(x - soft)
    given = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(mish(given), x * np.tanh(soft), rtol=2e-6, atol=1e-12)
    found = jax.vmap(jax.grad(mish))(given)
    np.testing.assert_allclose(found, slope, rtol=2e-6, atol=2e-6)
