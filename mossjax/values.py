"""What comes from outside as text or numbers, checked in one place.

Every reader of JSON, YAML, flags and configs asks here, so that no NaN, no number of 24 digits and
no truth value that was meant as a number passes one of them and surprises another.
"""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import itertools
import json
import math
import numbers
from typing import Any

from mossjax.errors import InputError

# Python spells no more digits than this in an error without complaint; nobody reads them either.
SHOWN = 40


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers that are accepted: finite, from `low` to `high`.

    Attributes:
      above: `low` itself is excluded. below: `high` itself is excluded.
      whole: integers only; else both kinds.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    whole: bool = False

    def __contains__(self, value: Any) -> bool:
        kind = numbers.Integral if self.whole else numbers.Real  # numpy's scalars among them
        if isinstance(value, bool) or not isinstance(value, kind):
            return False
        if not isinstance(value, numbers.Integral) and not math.isfinite(value):
            return False
        if value < self.low or value > self.high:
            return False
        return not (self.above and value == self.low or self.below and value == self.high)

    def __str__(self) -> str:
        kind = 'a whole number' if self.whole else 'a number'
        low = f' {"above" if self.above else "from"} {_short(self.low)}'
        high = f' {"below" if self.below else "up to"} {_short(self.high)}'
        return kind + low * math.isfinite(self.low) + high * math.isfinite(self.high)


# Sizes, counts and ids fit an int32, which is what arrays are indexed by on the device.
LARGEST = 2**31 - 1
SIZE = Range(1, LARGEST, whole=True)
COUNT = Range(0, LARGEST, whole=True)
SEED = Range(0, 2**32 - 1, whole=True)
# Deeper networks do not exist, and every layer is gone through by name.
LAYERS = Range(1, 4096, whole=True)
# float32 must hold it, and its square where norms and variances are taken.
NUMBER = Range(-1e18, 1e18)
POSITIVE = Range(0, 1e18, above=True)
NOT_NEGATIVE = Range(0, 1e18)
SHARE = Range(0, 1)
# Entries of a tree with everything that it names twice written out twice.
ENTRIES = 100_000


def number(value: Any, name: str, accepted: Range = NUMBER, remedy: str = '') -> int | float:
    """`value` itself, if it is a number in the range.

    Raises:
      InputError: naming it, what it is and what it may be.
    """
    if value not in accepted:
        remedy = f'; {remedy}' if remedy else ''
        raise InputError(f'{name} is {shown(value)}, expected {accepted}{remedy}')
    return value


def ranged(accepted: Range, default: Any = dataclasses.MISSING, **more: Any) -> Any:
    """A field of a dataclass whose number, or each of whose numbers, is in the range.

    Whoever fills the dataclass from outside checks it (`range_of`); nothing is checked here.

    Args:
      more: of `dataclasses.field`.
    """
    return dataclasses.field(default=default, metadata={'range': accepted}, **more)


def range_of(field: dataclasses.Field) -> Range | None:
    """The range that a field was declared with by `ranged`."""
    return field.metadata.get('range')


def parse_json(text: str | bytes, where: str, remedy: str = 'Download it again.') -> Any:
    """JSON as the standard has it: no NaN or Infinity, no key twice, no endless nesting or digits.

    Args:
      text: bytes are UTF-8.
      where: the file, or file and line, for the message.

    Raises:
      InputError: it is not.
    """
    try:
        return json.loads(
            text if isinstance(text, str) else text.decode(), parse_constant=_refuse_constant,
            parse_float=_float, parse_int=_int, object_pairs_hook=_without_duplicates,
        )
    except RecursionError:
        raise InputError(f'{where}: nested too deep to be read. {remedy}') from None
    except UnicodeDecodeError as error:
        raise InputError(f'{where}: not text in UTF-8 ({_said(error)}). {remedy}') from None
    except ValueError as error:  # JSONDecodeError among them
        raise InputError(f'{where}: not JSON ({error}). {remedy}') from None


def _said(error: UnicodeDecodeError) -> str:
    return f'{error.reason} at byte {error.start}'


def plain(value: Any, where: str) -> Any:
    """A tree of mappings, lists and scalars, as YAML or a config gives it, with numbers checked.

    Raises:
      InputError: it contains itself, is nested too deep, has too many entries once what it shares
        is written out, or holds a number that is not finite.
    """
    return _plain(value, where, (), itertools.count())


def is_text(value: str) -> bool:
    """Whether all of it can be written in UTF-8: JSON can spell halves of characters."""
    return not any('\ud800' <= letter <= '\udfff' for letter in value)


def shown(value: Any) -> str:
    """`value` for a message, cut where it gets long."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**SHOWN:
        return f'a number of more than {SHOWN} digits'
    text = repr(value)
    return text if len(text) <= 2 * SHOWN else f'{text[: 2 * SHOWN]}...'


def listed(names: Iterable, most: int = 8) -> str:
    """Names for a message: the first of them, and how many more there are."""
    names = [str(name)[: 4 * SHOWN] for name in names]
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more


def _plain(value: Any, where: str, above: tuple[int, ...], entries: Iterator[int]) -> Any:
    if next(entries) >= ENTRIES:
        raise InputError(f'{where}: more than {ENTRIES} entries; this is no configuration')
    if isinstance(value, Mapping | list | tuple):
        if id(value) in above or len(above) > 100:
            raise InputError(f'{where}: contains itself or is nested too deep; write it out')
        inside = (*above, id(value))
        if isinstance(value, Mapping):
            return {
                key: _plain(v, f'{where}: {_cut(key)}', inside, entries) for key, v in value.items()
            }
        return [_plain(v, f'{where}[{i}]', inside, entries) for i, v in enumerate(value)]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value, where, Range(-1e300, 1e300))
    return value


def _cut(key: Any) -> str:
    return str(key)[: 2 * SHOWN]


def _refuse_constant(name: str):
    raise ValueError(f'{name} is no number')


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f'{text[:SHOWN]} is too large a number')
    return value


def _int(text: str) -> int:
    if len(text) > SHOWN:
        raise ValueError(f'{text[:SHOWN]}... is a number of {len(text)} digits')
    return int(text)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise ValueError(f'key {twice!r} is given twice')
    return found


def _short(value: float) -> str:
    return f'{value:.10g}'
