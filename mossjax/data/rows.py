"""Examples to packed rows of a fixed length: the schema that training reads.

An example is one sequence on the two-channel grid with its targets, both int32 (t, 2), channel 0
text and channel 1 audio. `labels[t]` is the target predicted AT position t (so it belongs to the
token at t + 1); `IGNORE` where nothing is supervised; the last position never has a target.

A packed row is a dict of int32 numpy arrays over T positions:

    tokens     (T, 2)  text and audio ids; the pad pair at the end of the row
    labels     (T, 2)  targets, already shifted; IGNORE in the padding
    segments   (T,)    1, 2, ... for the examples of the row in order; 0 in the padding
    positions  (T,)    0, 1, ... from the start of each example; 0 in the padding

Attention must stay within a segment. Packing never cuts an example: recipes end them at the row
length, with `cut`. Everything here is deterministic.
"""

import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import itertools

import numpy as np

from mossjax.errors import InputError

# Label of a position that is not supervised: `ops.losses.IGNORE`, for readers without jax.
IGNORE = -100
FIELDS = {'tokens': 2, 'labels': 2, 'segments': 0, 'positions': 0}  # name: channels (0: none)

Row = dict[str, np.ndarray]
# (lengths, row length) -> for each row the indices of its examples
Assign = Callable[[Sequence[int], int], list[list[int]]]


@dataclasses.dataclass(frozen=True)
class Example:
    """tokens (t, 2), labels (t, 2) int32; `name` is what errors call it."""

    tokens: np.ndarray
    labels: np.ndarray
    name: str = ''

    def __post_init__(self):
        tokens = np.ascontiguousarray(self.tokens, dtype=np.int32)
        labels = np.ascontiguousarray(self.labels, dtype=np.int32)
        if tokens.shape != labels.shape or tokens.shape[1:] != (2,) or not len(tokens):
            raise InputError(
                f'example {self.name!r}: tokens {tokens.shape} and labels {labels.shape}, expected '
                'both (t, 2) with t > 0.'
            )
        if (labels[-1] != IGNORE).any():
            raise InputError(
                f'example {self.name!r}: the last position has a target {labels[-1].tolist()}; '
                'labels must be shifted (labels[t] is the token at t + 1).'
            )
        object.__setattr__(self, 'tokens', tokens)
        object.__setattr__(self, 'labels', labels)

    def __len__(self) -> int:
        return len(self.tokens)


@dataclasses.dataclass
class Fill:
    """Counts of a packing run, filled in while `pack` is consumed."""

    rows: int = 0
    examples: int = 0
    tokens: int = 0  # positions that hold an example
    supervised: int = 0  # targets, both channels
    slots: int = 0  # positions in all

    @property
    def padding(self) -> float:
        """Fraction of positions that hold nothing."""
        return 1 - self.tokens / self.slots if self.slots else 0.0


def best_fit(lengths: Sequence[int], length: int) -> list[list[int]]:
    """Best fit decreasing: longest first, each into the fullest row that still has room."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    rows: list[list[int]] = []
    space: list[tuple[int, int]] = []  # (room left, row), sorted
    for i in order:
        at = bisect.bisect_left(space, (lengths[i], -1))
        if at == len(space):
            rows.append([i])
            bisect.insort(space, (length - lengths[i], len(rows) - 1))
        else:
            room, row = space.pop(at)
            rows[row].append(i)
            bisect.insort(space, (room - lengths[i], row))
    return rows


def first_fit(seed: int) -> Assign:
    """First fit over an order shuffled by `seed`: each into the first row that has room."""

    def assign(lengths: Sequence[int], length: int) -> list[list[int]]:
        rows: list[list[int]] = []
        space = np.zeros(len(lengths), np.int64)
        for i in np.random.default_rng(seed).permutation(len(lengths)).tolist():
            fits = np.flatnonzero(space[: len(rows)] >= lengths[i])
            if len(fits):
                row = int(fits[0])
            else:
                row = len(rows)
                rows.append([])
                space[row] = length
            rows[row].append(i)
            space[row] -= lengths[i]
        return rows

    return assign


def pack(
    examples: Iterable[Example],
    length: int,
    *,
    assign: Assign = best_fit,
    pad: tuple[int, int] = (0, 0),
    window: int = 4096,
    fill: Fill | None = None,
) -> Iterator[Row]:
    """Packs examples into rows of `length` positions.

    Args:
      assign: which examples share a row: `best_fit` or `first_fit(seed)`.
      pad: text and audio id of the padding; any id inside both vocabularies.
      window: examples packed together, which bounds memory.
      fill: where to count; its `padding` is right once the iterator is exhausted.

    Yields: packed rows (module docstring). Rows are ordered by window, not shuffled. `best_fit`
    puts examples of one length side by side in the order they came: shuffle them before, or all
    versions of a recording share a row.

    Raises:
      InputError: an example is longer than a row.
    """
    fill = Fill() if fill is None else fill
    for group in _windows(examples, window):
        for example in group:
            if len(example) > length:
                raise InputError(
                    f'example {example.name!r} has {len(example)} positions, rows have {length}; '
                    'raise the row length, drop the example, or split it first with rows.cut.'
                )
        for indices in assign([len(example) for example in group], length):
            row = _row([group[i] for i in indices], length, pad)
            fill.rows += 1
            fill.examples += len(indices)
            fill.tokens += int((row['segments'] > 0).sum())
            fill.supervised += int((row['labels'] != IGNORE).sum())
            fill.slots += length
            yield row


def unpack(row: Row) -> list[Example]:
    """The examples of a packed row, in order; inverse of `pack` up to order and names."""
    segments = np.asarray(row['segments'])
    return [
        Example(row['tokens'][segments == k], row['labels'][segments == k])
        for k in range(1, int(segments.max(initial=0)) + 1)
    ]


def cut(example: Example, length: int, ends: np.ndarray | None = None) -> list[Example]:
    """Splits a long example into pieces of at most `length` positions, without losing a target.

    The last position of a piece comes again as the first of the next, where its target is learnt.

    Args:
      ends: bool (t,), the positions a piece may end with; any by default.

    Raises:
      InputError: none of them is near enough.
    """
    ends = np.ones(len(example), bool) if ends is None else ends
    pieces, start = [], 0
    while len(example) - start > length:
        near = np.flatnonzero(ends[start + 1 : start + length])
        if not len(near):
            raise InputError(
                f'example {example.name!r} cannot be cut between its positions {start} and '
                f'{start + length}; raise the row length.'
            )
        end = start + 1 + int(near[-1])
        pieces.append(_piece(example, start, end + 1))
        start = end
    return [*pieces, _piece(example, start, len(example))] if pieces else [example]


def _piece(example: Example, start: int, stop: int) -> Example:
    labels = example.labels[start:stop].copy()
    labels[-1] = IGNORE
    return Example(example.tokens[start:stop], labels, f'{example.name}[{start}:{stop}]')


def _windows(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    iterator = iter(examples)
    while group := list(itertools.islice(iterator, size)):
        yield group


def _row(examples: list[Example], length: int, pad: tuple[int, int]) -> Row:
    tokens = np.tile(np.asarray(pad, np.int32), (length, 1))
    labels = np.full((length, 2), IGNORE, np.int32)
    segments = np.zeros(length, np.int32)
    positions = np.zeros(length, np.int32)
    start = 0
    for number, example in enumerate(examples, 1):
        here = slice(start, start + len(example))
        tokens[here] = example.tokens
        labels[here] = example.labels
        segments[here] = number
        positions[here] = np.arange(len(example))
        start += len(example)
    return {'tokens': tokens, 'labels': labels, 'segments': segments, 'positions': positions}
