"""The idle branch waits: one step of decoding in which only the branch that is needed runs.

While a lane speaks, its text branch is needed for keys and values only, and only once text
resumes. Until then the trunk's outputs are kept (`Cache.behind_*`), and the branch reads them in
one go when a lane turns to it or the buffer is full. When a branch runs, it catches up on all
lanes. The rows that come out are the same as if both branches had run at every step.
"""

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp

from mossjax.models.lm.cache import Cache
from mossjax.models.lm.model import Hidden, LanguageModel

BRANCHES = ('text', 'audio')


def step(
    model: LanguageModel, row: jax.Array, running: jax.Array, wanted: jax.Array, cache: Cache
) -> tuple[Hidden, Cache]:
    """Reads one row of every running lane.

    Args:
      row: (b, 2) int32.
      running: (b,) bool, lanes that the row belongs to; the others stand still.
      wanted: (b, 2) bool, branches (text, audio) whose output at this row is asked for.

    Returns:
      (branch outputs (b, 1, d), meaningful where wanted; the cache).
    """
    count = running.astype(jnp.int32)
    h, cache = model.read(row[:, None], count, cache)
    found = []
    for i, name in enumerate(BRANCHES):
        hidden, cache = _branch(model, name, h, count, jnp.any(wanted[:, i] & running), cache)
        found.append(hidden)
    return Hidden(*found), cache


def catch_up(model: LanguageModel, cache: Cache) -> Cache:
    """The cache with no branch waiting, which is what `LanguageModel.extend` wants."""
    for name in BRANCHES:
        behind, stack = getattr(cache, f'behind_{name}'), getattr(cache, name)
        if behind.shape[1]:
            lag = cache.trunk.length - stack.length
            _, new = _run(
                jnp.any(lag > 0).astype(jnp.int32),
                functools.partial(_read, model, name, behind, lag, stack),
            )
            cache = dataclasses.replace(cache, **{name: stack.longer(new, lag)})
    return cache


def _branch(model, name: str, h: jax.Array, count, needed, cache: Cache):
    """One branch after the trunk has read a row with outputs h (b, 1, d)."""
    stack, behind = getattr(cache, name), getattr(cache, f'behind_{name}')
    room = behind.shape[1]
    if not room:
        hidden, new = _read(model, name, h, count, stack)
        return hidden, dataclasses.replace(cache, **{name: stack.longer(new, count)})
    lag = cache.trunk.length - stack.length  # the new row included
    here = jnp.arange(room) == (lag - 1)[:, None]
    behind = jnp.where((here & (count > 0)[:, None])[..., None], h, behind)
    most = jnp.max(lag)
    run = needed | (most >= room)
    hidden, new = _run(
        jnp.where(run, jnp.where(most > 1, 1, 2), 0),
        functools.partial(_read, model, name, behind, lag, stack),
        functools.partial(_read, model, name, behind[:, :1], lag, stack),
    )
    stack = stack.longer(new, jnp.where(run, lag, 0))
    return hidden, dataclasses.replace(cache, **{name: stack, f'behind_{name}': behind})


def _run(which: jax.Array, *ways: Callable):
    """What way number `which` - 1 gives, in the shapes of the first; zeros if it is 0.

    The cache is no result of a way: its buffers would be copied into and out of the conditional.
    """
    shapes = jax.eval_shape(ways[0])

    def padded(way):
        def fill(x, shape):
            return jnp.pad(x, [(0, to - n) for n, to in zip(x.shape, shape.shape, strict=True)])

        return lambda: jax.tree.map(fill, way(), shapes)

    def nothing():
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return jax.lax.switch(which, [nothing, *map(padded, ways)])


def _read(model, name: str, h: jax.Array, count, stack):
    """One branch over h (b, t, d): (outputs (b, 1, d) at the last real row, keys and values)."""
    x, new = model.branch(name, h, stack)
    last = jnp.maximum(count - 1, 0)[:, None, None]
    return jnp.take_along_axis(x, last, axis=1), new
