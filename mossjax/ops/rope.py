"""Rotary position embedding, half-split ("NeoX") layout as in Qwen3."""

import jax
import jax.numpy as jnp
import numpy as np


def frequencies(head_dim: int, theta: float) -> np.ndarray:
    """theta^(-2j / head_dim) for j = 0 .. head_dim / 2 - 1, float32, computed on the host.

    Accelerators round these powers differently by one unit in the last place, which shows in
    bfloat16 tables from position 459 on; so the table is a constant of the program.
    """
    exponents = np.arange(0, head_dim, 2) / head_dim
    return np.float32(1) / np.power(theta, exponents).astype(np.float32)


def rotation(positions: jax.Array, frequencies: np.ndarray, dtype) -> tuple[jax.Array, jax.Array]:
    """cos and sin of position * frequency: (b, t) -> two of (b, t, 1, h / 2).

    Angles, cos and sin are float32; only the result is rounded to the activations' dtype.
    """
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates each pair (x_j, x_{j + h/2}) by its angle; x (b, t, n, h)."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
