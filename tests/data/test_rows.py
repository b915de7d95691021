"""Packing keeps every example whole, exactly once, inside its own segment."""

import itertools

import numpy as np
import pytest

from mossjax.data.rows import IGNORE, Example, Fill, best_fit, cut, first_fit, pack, unpack
from mossjax.errors import InputError


def make(rng, n, low=3, high=30):
    for i in range(n):
        t = int(rng.integers(low, high))
        labels = rng.integers(-1, 50, (t, 2))
        labels[-1] = IGNORE
        yield Example(rng.integers(0, 50, (t, 2)), labels, f'example {i}')


def content(examples):
    return sorted((e.tokens.tobytes(), e.labels.tobytes()) for e in examples)


@pytest.mark.parametrize('assign', [best_fit, first_fit(3)])
def test_unpacking_gives_the_examples_back(rng, assign):
    examples = list(make(rng, 200))
    fill = Fill()
    rows = list(pack(examples, 64, assign=assign, pad=(7, 9), window=64, fill=fill))
    assert content(itertools.chain(*map(unpack, rows))) == content(examples)
    for row in rows:
        empty = row['segments'] == 0
        assert (row['tokens'][empty] == [7, 9]).all() and (row['labels'][empty] == IGNORE).all()
        assert (np.diff(row['segments'][~empty]) >= 0).all() and not empty[0]
        for k in range(1, row['segments'].max() + 1):
            of_segment = row['positions'][row['segments'] == k]
            np.testing.assert_array_equal(of_segment, np.arange(len(of_segment)))
        assert all(v.dtype == np.int32 and len(v) == 64 for v in row.values())
    total = sum(map(len, examples))
    assert (fill.rows, fill.examples, fill.tokens) == (len(rows), 200, total)
    assert fill.padding == pytest.approx(1 - total / (64 * len(rows)))
    assert fill.supervised == sum((e.labels != IGNORE).sum() for e in examples)


@pytest.mark.parametrize('assign', [best_fit, first_fit(0)])
def test_deterministic(rng, assign):
    examples = list(make(rng, 100))
    first, second = (list(pack(examples, 48, assign=assign)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_best_fit_decreasing_by_hand():
    # 7 | 6 | 5 | 4 joins 6 (room 4, the tightest), 3 joins 7, 3 joins 5, 2 joins 5 + 3.
    assert best_fit([3, 7, 4, 6, 5, 2, 3], 10) == [[1, 0], [3, 2], [4, 6, 5]]


def test_best_fit_is_within_the_known_bound(rng):
    """At most 11/9 OPT + 6/9 rows (Dosa 2007), and OPT is at least the total over the length."""
    lengths = rng.integers(1, 40, 500).tolist()
    assert len(best_fit(lengths, 64)) <= 11 / 9 * np.ceil(sum(lengths) / 64) + 6 / 9


def test_first_fit_follows_its_seed(rng):
    lengths = rng.integers(1, 40, 100).tolist()
    assert first_fit(1)(lengths, 64) == first_fit(1)(lengths, 64) != first_fit(2)(lengths, 64)


def test_too_long_is_refused_by_name(rng):
    examples = [*make(rng, 3), Example(np.zeros((65, 2)), np.full((65, 2), IGNORE), 'long.wav')]
    with pytest.raises(InputError, match=r"'long.wav' has 65 positions, rows have 64.*cut"):
        list(pack(examples, 64))


def test_cut_loses_no_target(rng):
    """The position a piece ends with is the first of the next, where its target is learnt."""
    (whole,) = make(rng, 1, 25, 26)
    pieces = cut(whole, 10)
    assert [len(p) for p in pieces] == [10, 10, 7]
    for start, piece in zip((0, 9, 18), pieces, strict=True):
        here = slice(start, start + len(piece))
        np.testing.assert_array_equal(piece.tokens, whole.tokens[here])
        np.testing.assert_array_equal(piece.labels[:-1], whole.labels[here][:-1])
        assert (piece.labels[-1] == IGNORE).all()
    assert cut(whole, 25) == [whole]


def test_cut_ends_pieces_only_where_it_may(rng):
    (whole,) = make(rng, 1, 25, 26)
    ends = np.zeros(25, bool)
    ends[[3, 7, 12, 19]] = True
    assert [len(p) for p in cut(whole, 10, ends)] == [8, 6, 8, 6]  # 0-7, 7-12, 12-19, 19-24
    ends[12] = False
    with pytest.raises(InputError, match='between its positions 7 and 17'):
        cut(whole, 10, ends)


def test_unshifted_labels_are_refused():
    with pytest.raises(InputError, match='shifted'):
        Example(np.ones((4, 2)), np.ones((4, 2)), 'x')
    with pytest.raises(InputError, match=r'\(t, 2\)'):
        Example(np.ones((2, 4)), np.ones((4, 2)), 'x')
