"""The square of a sine as a polynomial.

A vocoder takes millions of them for a second of sound. Compilers that know the sine of any number,
however large, put a hundred operations and their branches into every loop that has one: a TPU's
then needs minutes for such a network. Only the distance to the nearest multiple of pi matters here,
and for the derivative, sin 2x, to that of half of pi: made of x anew, it keeps nothing for the way
back.
"""

import math

import jax
import jax.numpy as jnp

# pi in three parts; the first two have so few digits that their multiples are exact in float32.
_PI = 3.140625, 9.67502593994140625e-4, 1.509957990978376e-7
# sin r / r - 1 in powers of r^2, the first left out, least relative error on [-pi/2, pi/2]: 6e-9.
_POWERS = -1.666665954e-1, 8.333066083e-3, -1.980959012e-4, 2.60575075e-6


@jax.custom_jvp
def sin_squared(x: jax.Array) -> jax.Array:
    """sin^2(x) of x in radians, to 3e-7 where |x| < 10,000 and to 2e-6 where |x| < 100,000.

    Of numbers beyond 10^7 it is no sine any more, and may be above one.
    """
    _, r = _reduced(x, 1)
    return jnp.square(_sine(r))


@sin_squared.defjvp
def _derivative(primals, tangents):
    [x], [change] = primals, tangents
    quarters, r = _reduced(x, 2)
    odd = jnp.abs(quarters - 2 * jnp.round(quarters / 2))
    return sin_squared(x), _sine(2 * r) * (1 - 2 * odd) * change


def _reduced(x: jax.Array, parts: int) -> tuple[jax.Array, jax.Array]:
    """How many multiples of pi / parts lie nearest, and what is left beside them."""
    turns = jnp.round(x * (parts / math.pi))
    for part in _PI:
        x = x - turns * (part / parts)
    return turns, x


def _sine(r: jax.Array) -> jax.Array:
    """sin r of r in [-pi / 2, pi / 2]."""
    squared = jnp.square(r)
    tail = jnp.zeros_like(r)
    for power in reversed(_POWERS):
        tail = squared * (power + tail)
    return r + r * tail
