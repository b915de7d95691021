"""Sessions on the host: buffering to blocks, growing steps, ends."""

import jax
import numpy as np
import pytest

from mossjax.errors import InputError
from mossjax.infer.streaming import Pipeline, Rung, Session, Sessions
from tests.models.test_stream import Sums


class Seen(list):
    """A step that notes how many places it was called with, and how many sessions took part."""

    step = staticmethod(jax.jit(Sums().step))

    def __call__(self, state, piece):
        if not isinstance(state.total, jax.core.Tracer):  # else only shapes are asked for
            self.append((piece.values.shape[1], int((piece.count > 0).sum())))
        return self.step(state, piece)


def sums(sessions=1, places=(3,), bulk=None, **more):
    seen = Seen()
    rungs = [Rung(n, seen) for n in places]
    bulk = bulk and Rung(bulk, seen)
    return Sessions(rungs, Sums().start(sessions), bulk=bulk, **more), seen


@pytest.mark.parametrize('sizes', [[11], [1] * 11, [4, 0, 7], [0, 2, 9], [6, 5]])
def test_any_arrival_gives_the_same_in_the_same_steps(sizes):
    sessions, seen = sums(places=(3, 6))
    session, x = Session(sessions), np.arange(11.0)
    parts = [session.feed(part) for part in np.split(x, np.cumsum(sizes)[:-1])] + [session.finish()]
    assert sum(map(len, parts[:-1])) == 8  # 9 places are whole blocks, one sum is held
    np.testing.assert_array_equal(np.concatenate(parts), np.cumsum(x))
    assert [places for places, _ in seen] == [3, 6, 6]


def test_much_at_once_goes_in_longer_pieces_and_gives_the_same():
    sessions, seen = sums(bulk=9)
    x = np.arange(32.0)
    found = sessions.feed({0: x}, ending=[0])[0]
    np.testing.assert_array_equal(found, np.cumsum(x))
    assert [places for places, _ in seen] == [9, 9, 9, 3, 3]


def test_sessions_on_one_rung_step_together():
    sessions, seen = sums(3)
    found = sessions.feed({0: np.ones(7), 2: np.ones(3)}, ending=[2])
    assert {i: x.tolist() for i, x in found.items()} == {0: [1, 2, 3, 4, 5], 2: [1, 2, 3]}
    assert seen == [(3, 2), (3, 1)]
    assert sessions.bytes_each == 8


def test_a_session_of_nothing():
    session = Session(sums()[0])
    assert session.feed(np.zeros(0, np.float32)).shape == session.finish().shape == (0,)


def test_what_a_session_refuses():
    sessions, _ = sums(2, names=['caller 7', 'caller 9'])
    sessions.feed({0: np.ones(4)}, ending=[0])
    before = jax.tree.map(np.asarray, sessions.state)
    for again in ({0: np.ones(1), 1: np.ones(9)}, {0: []}):
        with pytest.raises(InputError, match='caller 7 has ended.*start another'):
            sessions.feed(again)
    with pytest.raises(InputError, match='caller 7 has ended'):
        Session(sessions).finish()
    with pytest.raises(InputError, match=r'caller 9: a piece of float64 and shape \(2, 2\)'):
        sessions.feed({1: np.ones((2, 2))})
    with pytest.raises(InputError, match='caller 9: a piece of int64'):
        sessions.feed({1: np.ones(3, np.int64)})
    with pytest.raises(InputError, match='caller 9: .* not finite'):
        sessions.feed({1: np.array([1, np.nan])})
    jax.tree.map(np.testing.assert_array_equal, sessions.state, before)
    np.testing.assert_array_equal(sessions.feed({1: np.ones(3)}, ending=[1])[1], [1, 2, 3])


def test_a_pipeline_is_fed_and_ended_as_one():
    two = Session(Pipeline(sums()[0], sums()[0]))
    parts = [two.feed(np.ones(2)), two.feed(np.ones(6)), two.finish()]
    assert [len(part) for part in parts] == [0, 2, 6]
    np.testing.assert_array_equal(np.concatenate(parts), np.cumsum(np.cumsum(np.ones(8))))
