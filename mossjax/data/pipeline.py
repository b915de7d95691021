"""Batches of packed rows by step: the data position of a training run is one integer.

Global batch i is a function of (seed, i): rows [i*b, (i+1)*b) of an endless sequence in which the
data sets are mixed by weight and each is shuffled anew every epoch by an index permutation. A
host asks for the rows of it that its devices hold, by number (`parallel.rows`), so the global batch
is the same on any topology and a run that resumes needs nothing but its step.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
import copy
import functools
from typing import Any, Protocol, TypeVar
import zlib

import numpy as np

from mossjax.data.checked import CheckedRows, Numbers
from mossjax.data.rows import FIELDS, Row
from mossjax.errors import InputError
from mossjax.values import POSITIVE, SIZE, number

T = TypeVar('T')


Batch = dict[str, np.ndarray]


class Batches(Protocol):
    """Global batches by step, read by row."""

    def size(self, step: int) -> int:
        """Rows of global batch `step`."""

    def batch(self, step: int, rows: Sequence[int] | None = None) -> Batch:
        """The rows of global batch `step` with these numbers, all of them by default.

        Every array has the rows as first axis; nothing else of it depends on which rows are asked
        for, padded lengths among it.
        """

    def names(self, step: int) -> list[str]:
        """What people call the rows of global batch `step`, one a row."""


class Source(Protocol):
    """Random access to rows: a `builder.RowSource`, or a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...


class RowBatches:
    """Batches of a weighted mixture of row sources, as a function of the step."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        batch_size: int,
        seed: int,
        *,
        weights: Mapping[str, float] | None = None,
        skip_rows: Mapping[str, Sequence[int]] | None = None,
        fault: Callable[[Row], str | None] = lambda row: None,
        skip_corrupt: bool = False,
    ):
        """Args:
          sources: name -> rows; all of one row length.
          batch_size: rows of a global batch.
          seed: of shuffling; each source has an order of its own.
          weights: name -> share of rows (any scale); every row equally often if None.
          skip_rows, fault, skip_corrupt: see `checked.CheckedRows`. A row that is skipped is
            blank; the others keep their places.

        Raises:
          InputError: names of sources and weights differ, a weight is not positive, a source is
            empty or has another row length, or lacks a row of `skip_rows`.
        """
        weights = {k: len(v) for k, v in sources.items()} if weights is None else dict(weights)
        sources = {
            name: CheckedRows(name, source, (skip_rows or {}).get(name, ()), fault, skip_corrupt)
            for name, source in sources.items()
        }
        _check(sources, weights, batch_size)
        if unknown := sorted((skip_rows or {}).keys() - sources.keys()):
            raise InputError(f'rows to skip are of {unknown[0]!r}, the data sets are '
                             f'{sorted(sources)}')  # fmt: skip
        self._mix = functools.partial(_mixture, weights=weights, seed=seed)
        self._rows = self._mix(sources)
        self._lengths = {name: len(source) for name, source in sources.items()}
        self._batch_size = batch_size
        self._start = 0, 0  # a step, and how many rows all steps before it have consumed

    def consumed(self, step: int) -> int:
        """Rows of all batches before this step: the position in the endless sequence."""
        first, rows = self._start
        return rows + (step - first) * self._batch_size

    def at(self, step: int, rows: int) -> 'RowBatches':
        """The same batches, such that those before `step` have consumed so many rows."""
        moved = copy.copy(self)
        moved._start = step, rows
        return moved

    def size(self, step: int) -> int:
        """Rows of a global batch, the same at every step."""
        del step
        return self._batch_size

    def batch(self, step: int, rows: Sequence[int] | None = None) -> Batch:
        """See `Batches`; int32 (b, T, 2) or (b, T)."""
        found = [self._rows[i] for i in self._places(step, rows)]
        return {key: np.stack([row[key] for row in found]) for key in FIELDS}

    def names(self, step: int) -> list[str]:
        """'name[row]' for each row of a batch: its data set and its number in that."""
        named = self._mix({name: Numbers(name, n) for name, n in self._lengths.items()})
        return [named[i] for i in self._places(step, None)]

    def _places(self, step: int, rows: Sequence[int] | None) -> list[int]:
        chosen = range(self._batch_size) if rows is None else rows
        return [self.consumed(step) + int(row) for row in chosen]

    def iterate(self, start_step: int = 0, **prefetching: Any) -> Iterator[Batch]:
        """Batches from `start_step` on, without end, read ahead by threads (see `prefetch`)."""
        return prefetch(self.batch, start_step, **prefetching)


class FixedRows:
    """The first rows of data sets in order, filled up with blank ones: for evaluation.

    Args:
      batch_size: rows of a batch. most: rows of each data set.

    Attributes:
      steps: batches in all.
    """

    def __init__(self, sources: Mapping[str, Source], batch_size: int, most: int):
        self._batch_size = batch_size
        self._sources = {name: CheckedRows(name, source) for name, source in sources.items()}
        self._places = [
            (name, i) for name, source in self._sources.items()
            for i in range(min(most, len(source)))
        ]  # fmt: skip
        self.steps = -(-len(self._places) // batch_size)

    def size(self, step: int) -> int:
        """See `Batches`."""
        del step
        return self._batch_size

    def batch(self, step: int, rows: Sequence[int] | None = None) -> Batch:
        """See `Batches`; of steps below `steps`."""
        chosen = range(self._batch_size) if rows is None else rows
        found = [self._row(step * self._batch_size + int(row)) for row in chosen]
        return {key: np.stack([row[key] for row in found]) for key in FIELDS}

    def names(self, step: int) -> list[str]:
        """See `Batches`; blank rows have none."""
        first = step * self._batch_size
        return [f'{name}[{i}]' for name, i in self._places[first : first + self._batch_size]]

    def _row(self, at: int) -> Row:
        if at < len(self._places):
            name, i = self._places[at]
            return self._sources[name][i]
        return next(iter(self._sources.values())).blank


class Whole:
    """Batches that a function of the step makes whole, rows drawn at random, say."""

    def __init__(self, make: Callable[[int], Batch]):
        self._make = make

    def size(self, step: int) -> int:
        return len(next(iter(self._make(step).values())))

    def batch(self, step: int, rows: Sequence[int] | None = None) -> Batch:
        batch = self._make(step)
        return batch if rows is None else {name: x[rows] for name, x in batch.items()}

    def names(self, step: int) -> list[str]:
        """Rows are drawn: their places in the batch."""
        return [f'row {i}' for i in range(self.size(step))]


def prefetch(
    batch: Callable[[int], T], start_step: int = 0, *, depth: int = 4, threads: int = 2
) -> Iterator[T]:
    """Yields batch(start_step), batch(start_step + 1), ... computed ahead by a few threads."""
    with ThreadPoolExecutor(threads, thread_name_prefix='batches') as pool:
        ahead = collections.deque(
            pool.submit(batch, step) for step in range(start_step, start_step + depth)
        )
        step = start_step + depth
        try:
            while True:
                ready = ahead.popleft().result()
                ahead.append(pool.submit(batch, step))
                step += 1
                yield ready
        finally:
            for future in ahead:
                future.cancel()


def _mixture(sources: Mapping[str, Sequence], weights: Mapping[str, float], seed: int):
    """Endless random-access sequence of what the sources hold."""
    import grain

    # By name: adding a data set must not reorder the others.
    shuffled = {
        name: grain.MapDataset.source(source)
        .shuffle(seed=zlib.crc32(f'{seed}/{name}'.encode()))
        .repeat()
        for name, source in sorted(sources.items())
    }
    return grain.MapDataset.mix(
        list(shuffled.values()), weights=[weights[name] for name in shuffled]
    )


def _check(sources, weights, batch_size) -> None:
    if not sources:
        raise InputError('no data sets given; name at least one.')
    if set(sources) != set(weights):
        raise InputError(
            f'data sets {sorted(sources)} and weights {sorted(weights)} differ; '
            'give each data set one weight.'
        )
    lengths = {}
    for name, source in sources.items():
        number(weights[name], f'the weight of data set {name!r}', POSITIVE, 'or leave it out')
        if not len(source):
            raise InputError(f'data set {name!r} is empty; write it anew or leave it out.')
        lengths[name] = source[0]['tokens'].shape[0]
    if len(set(lengths.values())) > 1:
        raise InputError(f'data sets have different row lengths {lengths}; pack them to one.')
    number(batch_size, 'rows of a batch', SIZE)
