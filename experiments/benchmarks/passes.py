"""What the benchmarks of attention run on a device at hand, beside what, and how they time it."""

from collections.abc import Callable
import statistics
import time

import jax
import numpy as np

HEADS, KV_HEADS, HEAD = 32, 8, 128  # of the 9.1 B model
WITHIN = {'float32': 1e-5, 'bfloat16': 5e-3}  # of ||difference|| / ||reference||
Arrays = tuple[np.ndarray, ...]


def passes(attend: Callable) -> dict[str, Callable]:
    """Jitted (q, k, v, weights, mask) -> results: the output; with the gradients of q, k and v."""

    def both(q, k, v, weights, mask):
        out, back = jax.vjp(lambda q, k, v: attend(q, k, v, mask), q, k, v)
        return out, *back(weights)

    return {
        'forward': jax.jit(lambda q, k, v, weights, mask: (attend(q, k, v, mask),)),
        'forward_backward': jax.jit(both),
    }


def median_seconds(run: Callable[[], object], rounds: int, warm: int) -> float:
    """Of a call that is waited for; the first `warm` do not count."""
    for _ in range(warm):
        jax.block_until_ready(run())
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def exact(q, k, v, weights, seen: np.ndarray) -> Arrays:
    """(out, dq, dk, dv) of sum(weights * attention) in float64, head by head.

    Args:
      q, weights: (1, t, n, h). k, v: (1, s, k, h). seen: (t, s) bool.
    """
    q, k, v, weights = (np.asarray(x, np.float64)[0] for x in (q, k, v, weights))
    out, d_q, d_k, d_v = (np.zeros_like(x) for x in (q, q, k, v))
    scale, group = q.shape[-1] ** -0.5, q.shape[1] // k.shape[1]
    for n in range(q.shape[1]):
        of = n // group
        scores = np.where(seen, q[:, n] @ k[:, of].T * scale, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        out[:, n] = p @ v[:, of]
        d_p = weights[:, n] @ v[:, of].T
        d_scores = p * (d_p - (d_p * p).sum(-1, keepdims=True)) * scale
        d_q[:, n] = d_scores @ k[:, of]
        d_k[:, of] += d_scores.T @ q[:, n]
        d_v[:, of] += p.T @ weights[:, n]
    return tuple(x[None] for x in (out, d_q, d_k, d_v))
