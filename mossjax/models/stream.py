"""What every part that streams agrees on: pieces, a state that is a tree, a step that is pure.

A stream is a small object with

    start(sessions) -> state
    step(state, piece) -> (state, out)

The state is a pytree of arrays whose first axis is the session, so rows can be taken, replaced and
saved; its shapes never change, so neither do a step's cost and a session's memory. `step` is pure
and is jitted for pieces of one shape. What a piece holds and what comes out are both a `Piece`, so
one part's output is the next one's input.

For every stream: pieces of any whole number of blocks give what the same blocks give one by one,
and what the network gives in one go under the same mask; a session's output depends neither on the
others in the batch nor on what stands in the padding.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

State = Any


class Piece(NamedTuple):
    """What b sessions send, or get, in one step.

    Attributes:
      values: (b, places, ...), places a whole number of blocks. A row's own places stand first;
        what stands behind them means nothing and may be NaN.
      count: (b,) int32, places of each row that exist. Whole blocks, unless the session ends; a
        row of none that does not end waits: its state stays and nothing comes out.
      last: (b,) bool, the session ends with these. It may end with none, having sent whole blocks.
    """

    values: jax.Array
    count: jax.Array
    last: jax.Array


class Stream(Protocol):
    """See the module's text.

    Attributes:
      block: places of a block. Streams of one network that differ in nothing else may share a
        state, so that a session goes on in longer blocks than it began with.
    """

    block: int

    def start(self, sessions: int) -> State: ...

    def step(self, state: State, piece: Piece) -> tuple[State, Piece]: ...


def choose(rows: jax.Array, state: State, other: State) -> State:
    """Each session's state out of one of two: `state` where rows (b,) holds.

    With a fresh state it lets new sessions take over the rows of sessions that have ended.
    """

    def pick(x, y):
        return jnp.where(rows.reshape(-1, *[1] * (x.ndim - 1)), x, y)

    return jax.tree.map(pick, state, other)


def cleaned(piece: Piece) -> Piece:
    """Zeros in the padding."""
    exists = jnp.arange(piece.values.shape[1]) < piece.count[:, None]
    exists = exists.reshape(*exists.shape, *[1] * (piece.values.ndim - 2))
    return piece._replace(values=jnp.where(exists, piece.values, 0))


def blockwise(
    step: Callable[[State, Piece], tuple[State, Piece]], block: int, state: State, piece: Piece
) -> tuple[State, Piece]:
    """Runs a step that knows single blocks over a piece of many.

    Args:
      step: of one block. It gets no NaN, and what it makes of waiting rows is dropped.

    Returns:
      (state, out), out wide enough for what all the blocks may give.
    """
    piece = cleaned(piece)
    b, places = piece.values.shape[:2]
    blocks = places // block
    if blocks * block != places:
        raise ValueError(f'{places} places are no whole number of blocks of {block}')
    final = jnp.maximum(-(-piece.count // block), 1) - 1  # the block a session ends in

    def one(state, part):
        i, values = part
        count = jnp.clip(piece.count - i * block, 0, block)
        part = Piece(values, count, piece.last & (final == i))
        new, out = step(state, part)
        active = (count > 0) | part.last
        out = Piece(out.values, jnp.where(active, out.count, 0), part.last)
        return choose(active, new, state), out

    values = piece.values.reshape(b, blocks, block, *piece.values.shape[2:])
    if blocks == 1:
        return one(state, (0, values[:, 0]))
    state, outs = jax.lax.scan(one, state, (jnp.arange(blocks), jnp.moveaxis(values, 1, 0)))
    return state, joined(outs)


def joined(outs: Piece) -> Piece:
    """Pieces one after another, stacked in front (n, b, ...), as one piece, without gaps."""
    n, b, places, *rest = outs.values.shape
    put = jax.vmap(lambda row, x, at: jax.lax.dynamic_update_slice_in_dim(row, x, at, axis=0))
    values = jnp.zeros((b, n * places, *rest), outs.values.dtype)
    at = jnp.zeros(b, jnp.int32)
    for i in range(n):  # each overwrites what stands behind the one before
        values = put(values, outs.values[i], at)
        at = at + outs.count[i]
    return Piece(values, at, jnp.any(outs.last, axis=0))
