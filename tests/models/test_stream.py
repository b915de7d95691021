"""The contract, and its proof, on a stream that can be worked out by hand: running sums, held."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.models.stream import Piece, blockwise, choose
from tests.contract import verify_contract


class Sums:
    """Each sum of all so far comes out one place late: the last one only when the end is known."""

    block = 3

    class State(NamedTuple):
        total: jnp.ndarray
        held: jnp.ndarray

    def start(self, sessions):
        return self.State(jnp.zeros(sessions), jnp.full(sessions, -1.0))

    def one(self, state, piece):
        sums = state.total[:, None] + jnp.cumsum(piece.values, axis=1)
        known = jnp.concatenate([state.held[:, None], sums], axis=1)
        first = state.held < 0  # nothing is held yet
        known = jnp.where(first[:, None], jnp.roll(known, -1, axis=1), known)
        there = piece.count + ~first
        total = state.total + jnp.sum(piece.values, axis=1)
        out = Piece(known, there - ~piece.last, piece.last)
        return self.State(total, total), out

    def step(self, state, piece):
        return blockwise(self.one, self.block, state, piece)


class Greedy(Sums):
    """What stands in the padding reaches the state."""

    def step(self, state, piece):
        state, out = self.one(state, piece)
        return state, out


class Sociable(Sums):
    """Sessions hear each other."""

    def one(self, state, piece):
        state, out = super().one(state, piece)
        return state, out._replace(values=out.values + 0.1 * jnp.mean(piece.values))


class Growing(Sums):
    """A state with the whole past in it."""

    def start(self, sessions):
        return (super().start(sessions), jnp.zeros((sessions, 0)))

    def step(self, state, piece):
        inner, out = super().step(state[0], piece)
        return (inner, jnp.concatenate([state[1], piece.values], axis=1)), out


class Hesitant(Sums):
    """A step may cost more than another: the state decides what is run."""

    def one(self, state, piece):
        late = state.total[0] > 5
        return jax.lax.cond(late, super().one, super().one, state, piece)


class Portable(Sums):
    """What is run depends on the platform alone."""

    def one(self, state, piece):
        one = super().one
        return jax.lax.platform_dependent(state, piece, tpu=one, default=one)


class Forgetful(Sums):
    """Only the first block of a piece is summed."""

    def one(self, state, piece):
        new, out = super().one(state, piece)
        return new._replace(total=state.total), out


ROWS = [np.arange(1, n + 1, dtype=np.float32) for n in (7, 6, 2, 9)]


@pytest.mark.parametrize('stream', [Sums, Portable])
def test_a_stream_that_keeps_the_contract(stream):
    verify_contract(stream(), ROWS, np.cumsum, atol=1e-6)


@pytest.mark.parametrize('stream', [Greedy, Sociable, Growing, Hesitant, Forgetful])
def test_a_stream_that_breaks_it_is_found(stream):
    with pytest.raises((AssertionError, TypeError)):
        verify_contract(stream(), ROWS, np.cumsum, atol=1e-6)


def test_rows_of_ended_sessions_serve_new_ones():
    stream = Sums()
    full = Piece(jnp.ones((2, 3)), jnp.array([3, 3]), jnp.array([True, False]))
    state, _ = stream.step(stream.start(2), full)
    state = choose(jnp.array([True, False]), stream.start(2), state)
    np.testing.assert_array_equal(state.total, [0, 3])
    _, out = stream.step(state, full)
    np.testing.assert_array_equal(out.values[0, :3], [1, 2, 3])
    np.testing.assert_array_equal(out.values[1, :3], [3, 4, 5])
