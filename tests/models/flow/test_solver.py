"""Noise table, time grid, guidance and Euler steps against recorded values and closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.errors import InputError
from mossjax.models.flow import solver


def test_noise_table_is_the_generator_s(flow_io):
    table = solver.noise_table()
    np.testing.assert_allclose(
        table[:124].T, flow_io['rand_noise_head'][0], rtol=0, atol=5e-7
    )  # a recorded stretch
    first = [-1.1258398, -1.1523602, -0.25057858, -0.4338788]
    np.testing.assert_allclose(table[:4, 0], first, rtol=0, atol=5e-7)
    np.testing.assert_allclose(table[-1, -1], -0.08329441, rtol=0, atol=5e-7)
    assert table.mean() == pytest.approx(-0.001076, abs=1e-6)
    assert table.std() == pytest.approx(0.99987, abs=1e-5)
    assert solver.noise_table() is table


def test_noise_ends_after_300_seconds():
    assert solver.noise(15000).shape == (15000, 80)
    with pytest.raises(InputError, match='15001 mel frames.*300 s'):
        solver.noise(15001)


def test_times(estimator_io):
    np.testing.assert_allclose(solver.time_grid(), estimator_io['t_span'], rtol=0, atol=1e-7)
    quarter = 1 - np.cos(np.arange(11) * np.pi / 20)
    np.testing.assert_allclose(solver.time_grid(), quarter, rtol=0, atol=2e-7)
    times, sizes = solver.visits(solver.time_grid())
    np.testing.assert_allclose(times, estimator_io['solver_t'], rtol=0, atol=1e-7)
    assert sizes.sum() == pytest.approx(1, abs=1e-6)


def test_guidance_weighs_the_halves():
    def velocity(x, valid, mu, t, speaker, cond):
        return x * t[:, None, None] + mu + 10 * speaker[:, None] + 100 * cond

    one = jnp.ones((1, 2, 3))
    guided = solver.guided(velocity, 0.7)
    found = guided(one, jnp.ones((1, 2), bool), 2 * one, jnp.array([0.5]), jnp.ones((1, 3)), one)
    # (1 + g) (0.5 + 2 + 10 + 100) - g 0.5
    np.testing.assert_allclose(found, np.full((1, 2, 3), 1.7 * 112.5 - 0.7 * 0.5), rtol=1e-6)
    assert solver.guided(velocity, 0) is velocity


def test_euler_steps_are_first_order():
    """dx/dt = 2 t: Euler's sum on the grid, computed here step by step in float64."""
    grid = 1 - np.cos(np.arange(11) * np.pi / 20)
    expected = sum(2 * t * (u - t) for t, u in zip(grid[:-1], grid[1:], strict=True))

    def velocity(x, valid, mu, t, speaker, cond):
        return jnp.broadcast_to(2 * t[:, None, None], x.shape)

    x = jnp.zeros((2, 3, 1))
    found = solver.integrate(velocity, x, None, None, None, None)
    np.testing.assert_allclose(found, np.full((2, 3, 1), expected), rtol=1e-5)
