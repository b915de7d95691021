"""What the benchmarks of attention run on a device at hand, and how they time it."""

from collections.abc import Callable
import statistics
import time

import jax


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
