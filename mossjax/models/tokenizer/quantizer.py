"""Vector quantisation: lookup, straight-through gradient, codebook by moving averages.

The codebook gets no gradient. It follows the vectors that choose it, and codes that nobody
chooses are restarted at vectors of the current batch. All functions are pure; sums run over the
global batch when the arguments are sharded, so several hosts need nothing extra.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Codebook(NamedTuple):
    """State of a codebook in training, float32 whatever the network computes in.

    Attributes:
      codes: (v, d) the rows that are looked up.
      count: (v,) moving average of how many vectors choose each code in a step.
      total: (v, d) moving average of the sum of those vectors; codes = total / count.
      updates: () int32, updates so far.
    """

    codes: jax.Array
    count: jax.Array
    total: jax.Array
    updates: jax.Array


def from_codes(codes: jax.Array) -> Codebook:
    """A codebook that starts at given rows, as if each had been chosen once."""
    codes = jnp.asarray(codes, jnp.float32)
    return Codebook(
        codes, jnp.ones(codes.shape[0], jnp.float32), codes, jnp.zeros((), jnp.int32)
    )


def distances(p: jax.Array, codes: jax.Array) -> jax.Array:
    """Squared Euclidean distances (..., v) of p (..., d) to codes (v, d), in float32."""
    p, codes = jnp.asarray(p, jnp.float32), jnp.asarray(codes, jnp.float32)
    squares = jnp.sum(jnp.square(p), axis=-1, keepdims=True)
    return jnp.sum(jnp.square(codes), axis=-1) + squares - 2.0 * (p @ codes.T)


def nearest(p: jax.Array, codes: jax.Array) -> jax.Array:
    """Index of the nearest code, the first one on ties: (...,) int32."""
    return jnp.argmin(distances(p, codes), axis=-1).astype(jnp.int32)


def straight_through(p: jax.Array, q: jax.Array) -> jax.Array:
    """Exactly q forward; the gradient goes to p unchanged."""
    return jax.lax.stop_gradient(q) + (p - jax.lax.stop_gradient(p))


def absolute_commitment(p: jax.Array, q: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over tokens of the squared error per dimension (upstream's rule). mask (b, t) bool."""
    error = jnp.mean(jnp.square(p - jax.lax.stop_gradient(q)), axis=-1)
    return masked_mean(error, mask)


def relative_commitment(p: jax.Array, q: jax.Array, mask: jax.Array) -> jax.Array:
    """The same divided by the variance of p, which gets no gradient.

    An encoder that starts from nothing can lower the absolute error by shrinking p; this one it
    cannot.
    """
    return absolute_commitment(p, q, mask) / jax.lax.stop_gradient(variance(p, mask) + 1e-8)


def variance(p: jax.Array, mask: jax.Array) -> jax.Array:
    """Variance of the vectors over tokens, averaged over dimensions: a scalar."""
    weight = mask[..., None].astype(jnp.float32)
    n = jnp.maximum(jnp.sum(weight), 1.0)
    axes = tuple(range(p.ndim - 1))
    mean = jnp.sum(p * weight, axis=axes) / n
    return jnp.mean(jnp.sum(jnp.square(p - mean) * weight, axis=axes) / n)


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of x where mask holds; zero when it holds nowhere."""
    mask = mask.astype(jnp.float32)
    return jnp.sum(x * mask) / jnp.maximum(jnp.sum(mask), 1.0)


def usage(ids: jax.Array, mask: jax.Array, codes: int) -> jax.Array:
    """(v,) float32: how many unmasked tokens chose each code."""
    return jnp.zeros(codes, jnp.float32).at[ids.reshape(-1)].add(
        mask.reshape(-1).astype(jnp.float32)
    )


def follow(book: Codebook, p: jax.Array, ids: jax.Array, mask: jax.Array, decay: float) -> Codebook:
    """One moving-average step towards the vectors that chose each code.

    The counts are smoothed so that no code divides by zero, and the smoothed value is what is
    kept (as upstream does).

    Args:
      p: (b, t, d). ids, mask: (b, t).
    """
    v, d = book.codes.shape
    p = jax.lax.stop_gradient(p).astype(jnp.float32).reshape(-1, d)
    weight = mask.reshape(-1, 1).astype(jnp.float32)
    sums = jnp.zeros((v, d), jnp.float32).at[ids.reshape(-1)].add(p * weight)
    count = decay * book.count + (1.0 - decay) * usage(ids, mask, v)
    everything = jnp.sum(count)
    count = (count + 1e-5) / (everything + v * 1e-5) * everything
    total = decay * book.total + (1.0 - decay) * sums
    return Codebook(total / count[:, None], count, total, book.updates + 1)


def draw_rows(key: jax.Array, mask: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """n distinct random positions where the flattened mask holds.

    Returns:
      (rows (n,) int32, fresh (n,) bool); past the number of unmasked positions rows repeat and
      fresh is False.
    """
    mask = mask.reshape(-1)
    order = jnp.argsort(jnp.where(mask, jax.random.uniform(key, mask.shape), 2.0))
    held = jnp.sum(mask)
    index = jnp.arange(n)
    return order[index % jnp.maximum(held, 1)].astype(jnp.int32), index < held


def replace(book: Codebook, where: jax.Array, rows: jax.Array) -> Codebook:
    """Puts rows (v, d) in place of the codes marked in where (v,), as if chosen once."""
    at = where[:, None]
    return book._replace(
        codes=jnp.where(at, rows, book.codes),
        count=jnp.where(where, 1.0, book.count),
        total=jnp.where(at, rows, book.total),
    )


def restart(
    book: Codebook, p: jax.Array, mask: jax.Array, key: jax.Array, *, threshold: float
) -> Codebook:
    """Codes with a count below the threshold become distinct random vectors of the batch.

    If there are more such codes than vectors, the last ones wait for the next restart.
    """
    dead = book.count < threshold
    v, d = book.codes.shape
    rows, fresh = draw_rows(key, mask, v)
    rank = jnp.cumsum(dead) - 1
    p = jax.lax.stop_gradient(p).astype(jnp.float32).reshape(-1, d)
    return replace(book, dead & fresh[rank], p[rows[rank]])


def start_codebook(
    vectors: jax.Array, key: jax.Array, codes: int, *, steps: int = 10, scale: float = 1.0
) -> Codebook:
    """k-means over recent vectors (n, d): how a codebook starts after training without one.

    Args:
      codes: v, at most n; the centres start at distinct random vectors.
      steps: iterations. Centres that lose all vectors move to random ones.
      scale: factor on the cluster sizes, one over the number of batches the vectors come from.
    """
    n, d = vectors.shape
    if n < codes:
        raise ValueError(f'{codes} codes cannot start from {n} vectors')
    vectors = jnp.asarray(vectors, jnp.float32)
    everywhere = jnp.ones(n, bool)

    def assign(centres):
        ids = nearest(vectors, centres)
        return usage(ids, everywhere, codes), jnp.zeros((codes, d)).at[ids].add(vectors)

    def step(i, centres):
        count, total = assign(centres)
        rows, _ = draw_rows(jax.random.fold_in(key, i), everywhere, codes)
        moved = total / jnp.maximum(count, 1.0)[:, None]
        return jnp.where(count[:, None] > 0, moved, vectors[rows])

    rows, _ = draw_rows(jax.random.fold_in(key, steps), everywhere, codes)
    centres = jax.lax.fori_loop(0, steps, step, vectors[rows])
    count, _ = assign(centres)
    count = jnp.maximum(count, 1.0) * scale
    return Codebook(centres, count, centres * count[:, None], jnp.zeros((), jnp.int32))
