"""From noise to mel: the fixed noise table, the time grid, Euler steps with guidance."""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.errors import InputError

MAX_FRAMES = 15000  # 300 s at 50 frames a second; the width of upstream's table
STEPS = 10


@functools.cache
def noise_table(mels: int = 80) -> np.ndarray:
    """(15000, mels) float32: the noise every utterance starts from, frame 0 first.

    Upstream draws it once as a (mels, 15000) tensor from torch's CPU generator seeded with 0 and
    never stores it, so checkpoints depend on that generator. It is a Mersenne twister whose low 24
    bits become a uniform; blocks of 16 uniforms become 16 normals by Box and Muller's formula,
    radius from the first eight, angle from the last eight.
    """
    count = mels * MAX_FRAMES
    if count % 16:
        raise InputError(f'{mels} mel bins: the noise table needs an even number')
    raw = np.random.RandomState(0).randint(0, 1 << 32, size=count, dtype=np.uint32)
    # Everything in float32, as there: doubles here would differ by up to 2e-6.
    u = ((raw & 0xFFFFFF).astype(np.float32) * np.float32(2.0**-24)).reshape(-1, 2, 8)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - u[:, 0]))
    angle = np.float32(2 * np.pi) * u[:, 1]
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    table = normal.reshape(mels, MAX_FRAMES).T.copy()
    table.setflags(write=False)  # shared by all callers
    return table


def noise(frames: int, mels: int = 80) -> np.ndarray:
    """The first `frames` rows of the table.

    Raises:
      InputError: more than 300 s.
    """
    if frames > MAX_FRAMES:
        raise InputError(
            f'{frames} mel frames; the noise table ends at {MAX_FRAMES} (300 s at 50 frames a '
            'second, the prompt included). Decode the codes in shorter pieces.'
        )
    return noise_table(mels)[:frames]


def time_grid(steps: int = STEPS) -> np.ndarray:
    """(steps + 1,) float32 from 0 to 1, dense near 0: 1 - cos(k pi / 2 steps)."""
    quarter = np.linspace(0, 1, steps + 1, dtype=np.float32) * np.float32(np.pi / 2)
    return np.float32(1) - np.cos(quarter)


def visits(grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Times and step sizes as the summed time visits them, in float32.

    Upstream adds step to step and aims each step at the next grid point, so the time it passes to
    the network differs from the grid in the last bits.
    """
    t, times, sizes = grid[0], [], []
    for goal in grid[1:]:
        size = np.float32(goal - t)
        times.append(t)
        sizes.append(size)
        t = np.float32(t + size)
    return np.array(times, np.float32), np.array(sizes, np.float32)


def guided(velocity: Callable, guidance: float | jax.Array) -> Callable:
    """Classifier-free guidance: (1 + g) v(conditions) - g v(no conditions), as one batch of two.

    Args:
      velocity: (x, valid, mu, t, speaker, cond) -> velocity of x.
      guidance: g; the number 0 needs no second half and costs none. May be traced.
    """
    if isinstance(guidance, (int, float)) and guidance == 0:
        return velocity

    def both(*given):
        return steered(velocity(*both_sides(*given)), guidance)

    return both


def both_sides(x, valid, mu, t, speaker, cond) -> tuple:
    """The estimator's arguments for twice the rows: with conditions, then without any."""

    def blank(y):
        return jnp.concatenate([y, jnp.zeros_like(y)])

    def twice(y):
        return jnp.concatenate([y, y])

    # The unconditional half has a zero speaker, not the projection's bias.
    return twice(x), twice(valid), blank(mu), twice(t), blank(speaker), blank(cond)


def steered(velocities: jax.Array, guidance: float | jax.Array) -> jax.Array:
    """The velocity that the two halves of a batch of `both_sides` make together."""
    with_conditions, without = jnp.split(velocities, 2)
    return (1 + guidance) * with_conditions - guidance * without


def integrate(
    velocity: Callable, x: jax.Array, valid: jax.Array, mu: jax.Array, speaker: jax.Array,
    cond: jax.Array, *, steps: int = STEPS,
) -> jax.Array:  # fmt: skip
    """Euler from t = 0 to 1 on the cosine grid.

    Args:
      x: (b, t, m) noise. valid (b, t), mu, speaker, cond: see `Estimator`.

    Returns:
      (b, t, m) mel. Known frames (cond) are not put back: callers cut them off.
    """

    def step(x, visit):
        t, size = visit
        v = velocity(x, valid, mu, jnp.full(x.shape[:1], t), speaker, cond)
        return x + size.astype(x.dtype) * v, None

    times, sizes = visits(time_grid(steps))
    x, _ = jax.lax.scan(step, x, (jnp.asarray(times), jnp.asarray(sizes)))
    return x
