"""The activation against the standard library's error function in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.ops.activations import gelu


def test_gelu_and_its_gradient():
    x = np.concatenate([np.linspace(-12, 12, 4001), [0, 1e-20, -1e-20, 1e30, -1e30]])
    x = x.astype(np.float32).astype(np.float64)
    below = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])
    found, slope = jax.vmap(jax.value_and_grad(gelu))(jnp.float32(x))
    assert np.all(np.abs(np.float64(found) - x * below) <= 2**-22 * np.abs(x))
    density = np.exp(-np.minimum(x * x, 1e3) / 2) / math.sqrt(2 * math.pi)
    with np.errstate(invalid='ignore'):
        np.testing.assert_allclose(slope, below + x * density, rtol=0, atol=1e-6)
    # Rounded once: bfloat16 is the nearest there is to the exact value of its input.
    half = jnp.bfloat16(x[:4001])
    exact = np.float64(half) * [0.5 * math.erfc(-v / math.sqrt(2)) for v in np.float64(half)]
    np.testing.assert_allclose(np.float64(gelu(half)), exact, rtol=2**-8, atol=5e-7)
