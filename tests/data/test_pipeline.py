"""Batches are a function of (seed, step): for whoever asks for which rows, and after a restart."""

import itertools

import numpy as np
import pytest

from mossjax.data.builder import open_rows, write_rows
from mossjax.data.pipeline import RowBatches, prefetch
from mossjax.data.rows import IGNORE, Example
from mossjax.errors import InputError

T = 8


def source(tag, n, length=T):
    """Rows that can be told apart: tokens hold (tag, number of the row)."""
    row = lambda i: {  # noqa: E731
        'tokens': np.tile(np.array([tag, i], np.int32), (length, 1)),
        'labels': np.full((length, 2), IGNORE, np.int32),
        'segments': np.ones(length, np.int32),
        'positions': np.arange(length, dtype=np.int32),
    }
    return [row(i) for i in range(n)]


# Not smaller: the index shuffle walks cycles of a fixed block, 4 ms a row for 23 rows.
SOURCES = {'asr': source(0, 120), 's2s': source(1, 240), 'text': source(2, 40)}
WEIGHTS = {'asr': 0.35, 's2s': 0.5, 'text': 0.15}


def identities(batches, steps):
    """(tag, row) of every row of some steps."""
    tokens = np.concatenate([batches.batch(s)['tokens'][:, 0] for s in steps])
    return [tuple(pair) for pair in tokens.tolist()]


class Counting(list):
    """A source that remembers which of its rows were read."""

    def __init__(self, rows):
        super().__init__(rows)
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


@pytest.mark.parametrize('rows', [[0, 1, 2, 3], [4], [6, 1, 3], [7, 0, 5, 2], range(8)])
def test_rows_are_read_by_their_numbers_and_no_others(rows):
    whole = RowBatches(SOURCES, 8, 3, weights=WEIGHTS)
    counting = {name: Counting(source) for name, source in SOURCES.items()}
    some = RowBatches(counting, 8, 3, weights=WEIGHTS)
    for step in (0, 1, 17, 10_000):
        assert some.size(step) == 8
        for source in counting.values():
            source.read.clear()
        want, got = whole.batch(step), some.batch(step, np.array(rows))
        for key in want:
            np.testing.assert_array_equal(got[key], want[key][list(rows)])
        assert sum(len(source.read) for source in counting.values()) == len(rows)


def test_restart_where_others_hold_the_rows_continues():
    """10 steps = 4 that one reads, then 6 that two read, every second row each."""
    whole = identities(RowBatches(SOURCES, 8, 3, weights=WEIGHTS), range(10))
    before = identities(RowBatches(SOURCES, 8, 3, weights=WEIGHTS), range(4))
    batches = [RowBatches(SOURCES, 8, 3, weights=WEIGHTS) for _ in range(2)]
    streams = [
        prefetch(lambda step, i=i: batches[i].batch(step, range(i, 8, 2)), 4) for i in range(2)
    ]
    after = []
    for _ in range(6):
        even, odd = (next(stream)['tokens'][:, 0] for stream in streams)
        after += [tuple(pair) for pair in np.stack([even, odd], 1).reshape(-1, 2).tolist()]
    for stream in streams:
        stream.close()
    assert before + after == whole


def test_seeds_differ_and_steps_differ():
    first = RowBatches(SOURCES, 8, 3, weights=WEIGHTS)
    assert identities(first, [5]) == identities(RowBatches(SOURCES, 8, 3, weights=WEIGHTS), [5])
    assert identities(first, [5]) != identities(RowBatches(SOURCES, 8, 4, weights=WEIGHTS), [5])
    assert identities(first, [5]) != identities(first, [6])


def test_proportions_hold_in_every_stretch():
    batches = RowBatches(SOURCES, 20, 0, weights=WEIGHTS)
    tags = np.array([tag for tag, _ in identities(batches, range(50))])
    for tag, name in enumerate(SOURCES):
        assert abs((tags == tag).mean() - WEIGHTS[name]) < 0.005
        per_batch = (tags.reshape(50, 20) == tag).sum(1)
        assert abs(per_batch - 20 * WEIGHTS[name]).max() <= 2  # not in lumps


def test_each_epoch_is_a_new_permutation():
    batches = RowBatches({'asr': SOURCES['asr']}, 1, 0)
    order = [row for _, row in identities(batches, range(360))]
    epochs = [order[i : i + 120] for i in (0, 120, 240)]
    assert all(sorted(epoch) == list(range(120)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != sorted(epochs[0])


def test_without_weights_every_row_is_equally_frequent():
    seen = identities(RowBatches(SOURCES, 8, 0), range(200))  # four times 400 rows
    counts = {pair: seen.count(pair) for pair in set(seen)}
    assert len(counts) == 400 and min(counts.values()) >= 3 and max(counts.values()) <= 5


def test_another_data_set_does_not_reorder_the_others():
    def order(sources):
        seen = identities(RowBatches(sources, 8, 0), range(40))
        return [row for tag, row in seen if tag == 0][:90]

    few = {'asr': SOURCES['asr'], 's2s': SOURCES['s2s']}
    assert order(few) == order(SOURCES)
    backwards = dict(reversed(SOURCES.items()))
    first, second = (RowBatches(x, 8, 0, weights=WEIGHTS) for x in (SOURCES, backwards))
    assert identities(first, range(3)) == identities(second, range(3))


def test_rows_from_files(tmp_path):
    def examples():
        for i in range(30):
            yield Example(np.full((5, 2), i), np.full((5, 2), IGNORE), str(i))

    write_rows(tmp_path, examples(), T, config={})
    stored = open_rows(tmp_path)
    batches = RowBatches({'x': stored}, 6, 0)
    seen = [row for row, _ in identities(batches, range(5))]
    assert sorted(seen) == list(range(30))
    stream = batches.iterate(2, depth=3, threads=3)  # readers are shared by threads
    for step in range(2, 40):
        got, want = next(stream), batches.batch(step)
        for key in want:
            np.testing.assert_array_equal(got[key], want[key])
    stream.close()


def test_prefetch_keeps_order_and_passes_errors_on():
    assert list(itertools.islice(prefetch(lambda i: i * i, 3, depth=5, threads=3), 6)) == [
        9, 16, 25, 36, 49, 64
    ]  # fmt: skip
    stream = prefetch(lambda i: 1 // (2 - i))
    assert next(stream) == 0 and next(stream) == 1
    with pytest.raises(ZeroDivisionError):
        next(stream)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'sources': {}}, 'no data sets'),
        ({'weights': {'asr': 1.0}}, 'differ'),
        ({'weights': {**WEIGHTS, 'asr': 0.0}}, "data set 'asr' is 0.0, expected a number above 0"),
        ({'weights': {**WEIGHTS, 'asr': np.inf}}, "data set 'asr' is inf"),
        ({'weights': {**WEIGHTS, 'asr': np.nan}}, "data set 'asr' is nan"),
        ({'batch_size': 0}, 'rows of a batch is 0'),
        ({'sources': {**SOURCES, 'asr': []}}, "'asr' is empty"),
        ({'sources': {**SOURCES, 'asr': source(0, 3, T + 1)}}, 'different row lengths'),
    ],
)
def test_bad_settings(change, message):
    settings = {'sources': SOURCES, 'batch_size': 8, 'seed': 0, 'weights': WEIGHTS} | change
    if not settings['sources']:
        settings['weights'] = {}
    with pytest.raises(InputError, match=message):
        RowBatches(**settings)
