"""TPU slices by name: the chips of each, how they lie and how hosts hold them.

A name is generation-size, as users and the Cloud TPU API write it: v5p counts TensorCores (two a
chip), v5e and v6e count chips.
"""

import dataclasses
import difflib
import math
import re

from mossjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Slice:
    """One TPU slice.

    Attributes:
      name: 'v5p-128'. generation: 'v5p'.
      shape: chips along each axis, '4x4x4'.
      chips_per_host: of each of its hosts.
    """

    name: str
    generation: str
    shape: str
    chips_per_host: int

    @property
    def chips(self) -> int:
        return math.prod(int(n) for n in self.shape.split('x'))

    @property
    def hosts(self) -> int:
        return self.chips // self.chips_per_host

    @property
    def topology(self) -> str:
        """As libtpu calls it, 'v5p:4x4x4'."""
        return f'{self.generation}:{self.shape}'


# Chips -> shape. Beyond one host v5e and v6e have four chips a host, up to one host eight.
_FLAT = {
    1: '1x1', 4: '2x2', 8: '2x4', 16: '4x4', 32: '4x8', 64: '8x8', 128: '8x16', 256: '16x16',
}  # fmt: skip
_CUBE = {
    4: '2x2x1', 8: '2x2x2', 16: '2x2x4', 32: '2x4x4', 64: '4x4x4', 128: '4x4x8', 256: '4x8x8',
    512: '8x8x8', 1024: '8x8x16', 2048: '8x16x16',
}  # fmt: skip
SLICES = {
    each.name: each
    for each in [
        *(Slice(f'v5p-{2 * chips}', 'v5p', shape, 4) for chips, shape in _CUBE.items()),
        *(
            Slice(f'{generation}-{chips}', generation, shape, chips if chips <= 8 else 4)
            for generation in ('v5e', 'v6e')
            for chips, shape in _FLAT.items()
        ),
    ]
}


def find(name: str, where: str) -> Slice:
    """The slice of this name; 'v5litepod-256' is v5e-256.

    Raises:
      InputError: there is none; `where` is what asked for it.
    """
    known = name.replace('v5litepod-', 'v5e-')
    if known in SLICES:
        return SLICES[known]
    close = difflib.get_close_matches(known, SLICES) or SLICES
    raise InputError(f'{where} {name}: no such slice; there are {", ".join(close)}')


def several(name: str, where: str) -> tuple[Slice, int]:
    """'v5p-128' or '2xv6e-256' -> (slice, how many of it are joined); see `find`."""
    count, _, one = name.partition('x')
    if not re.fullmatch('[1-9][0-9]*', count):
        count, one = '1', name
    return find(one, where), int(count)
