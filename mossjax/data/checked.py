"""Rows of a data set as training may read them: whole, possible, and named where they are not."""

from collections.abc import Callable, Sequence
import dataclasses
import functools

from absl import logging
import numpy as np

from mossjax.data.rows import FIELDS, IGNORE, Row
from mossjax.errors import InputError
from mossjax.values import listed


@dataclasses.dataclass(frozen=True)
class CheckedRows:
    """Random access to rows; a row that is skipped is blank: all padding, nothing supervised.

    Attributes:
      name: of the data set.
      source: its rows.
      skip: numbers of rows to skip.
      fault: row -> what is wrong with it, None if nothing is.
      skip_corrupt: skip rows that cannot be read or have a fault, and say so, instead of raising
        InputError.
    """

    name: str
    source: Sequence
    skip: Sequence[int] = ()
    fault: Callable[[Row], str | None] = lambda row: None
    skip_corrupt: bool = False

    def __post_init__(self):
        outside = [i for i in self.skip if not 0 <= i < len(self.source)]
        if outside:
            raise InputError(
                f'data set {self.name!r} has {len(self.source)} rows; rows to skip that it lacks: '
                f'{listed(outside)}'
            )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Row:
        if index in self._skipped:
            return self.blank
        row, fault = self._read(index)
        if fault is None:
            return row
        said = f'data set {self.name!r}, row {index}: {fault}'
        if not self.skip_corrupt:
            raise InputError(
                f'{said}. Write the data set anew, or go on without such rows: '
                "config.data.corrupt='skip'"
            )
        logging.warning('%s: skipped', said)
        return self.blank

    def _read(self, index: int) -> tuple[Row | None, str | None]:
        try:
            row = self.source[index]
        except Exception as error:  # whatever the reader of the files raises about a damaged one
            return None, f'cannot be read ({str(error).split("; at byte")[0]})'
        wrong = [key for key in FIELDS if key not in row]
        return row, f'lacks {wrong[0]}' if wrong else self.fault(row)

    @functools.cached_property
    def _skipped(self) -> frozenset[int]:
        return frozenset(self.skip)

    @functools.cached_property
    def blank(self) -> Row:
        """A row of padding, as long as the others."""
        readable = (row for row, _ in map(self._read, range(len(self))) if row is not None)
        like = next((row for row in readable if FIELDS.keys() <= row.keys()), None)
        if like is None:
            raise InputError(f'data set {self.name!r}: no row of it can be read; write it anew')
        fill = {'labels': IGNORE}
        return {key: np.full_like(like[key], fill.get(key, 0)) for key in FIELDS}


@dataclasses.dataclass(frozen=True)
class Numbers:
    """In the place of a data set of n rows: what to call each of them."""

    name: str
    n: int

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> str:
        return f'{self.name}[{index}]'
