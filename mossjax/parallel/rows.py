"""Which rows of a global batch this process reads, and the global arrays made of them.

The sharding decides. On a TPU slice the rows that the devices of one process hold are neither
neighbours nor in the order of the processes, and with tensor parallelism across hosts two processes
hold the same row. So nobody else counts processes: a task is asked for rows by their numbers.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import functools

import jax
from jax.sharding import NamedSharding
import numpy as np

from mossjax.errors import InputError
from mossjax.parallel import rules as rules_lib


def sharding(mesh, rules) -> NamedSharding:
    """Of batch arrays: the first axis divided over all devices that hold different rows."""
    return NamedSharding(mesh, rules_lib.spec(('batch',), rules))


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of global batches that one process holds.

    Attributes:
      sharding: of batch arrays, see `sharding`.
      process: whose; this one by default.
    """

    sharding: NamedSharding
    process: int | None = None

    @classmethod
    def of(cls, mesh, rules, process: int | None = None) -> 'Rows':
        return cls(sharding(mesh, rules), process)

    @functools.cached_property
    def parts(self) -> int:
        """Number of pieces a batch is cut into."""
        return len({_start(i) for i in self._indices(self._most).values()})

    @functools.cached_property
    def mine(self) -> tuple[int, ...]:
        """Which of these pieces the devices of the process hold, ascending."""
        process = jax.process_index() if self.process is None else self.process
        each = self._most // self.parts
        return tuple(sorted({
            _start(index) // each for device, index in self._indices(self._most).items()
            if device.process_index == process
        }))  # fmt: skip

    def held(self, size: int) -> np.ndarray:
        """Numbers of the rows that the process holds of a batch of `size` rows, ascending.

        Raises:
          InputError: the batch does not divide.
        """
        self.check([size])
        each = size // self.parts
        return (np.array(self.mine)[:, None] * each + np.arange(each)).reshape(-1)

    def check(self, sizes: Iterable[int]) -> None:
        """
        Raises:
          InputError: a batch of so many rows does not divide among the devices.
        """
        for size in sizes:
            if size < 1 or size % self.parts:
                raise InputError(
                    f'a batch of {size} rows does not divide among the {self.parts} row-holding '
                    f'parts of the mesh {dict(self.sharding.mesh.shape)}: set '
                    'config.data.batch_size (language model), config.data.rows_multiple '
                    '(tokenizer, decoder) or config.data.rows (vocoder, speaker encoder) to a '
                    f'multiple of {self.parts}'
                )

    def check_batch(self, batch: Mapping[str, np.ndarray], size: int) -> None:
        """
        Raises:
          InputError: an array is not that of the rows that are held of a batch of `size`.
        """
        held = len(self.held(size))
        for name, x in batch.items():
            if np.ndim(x) < 1 or len(x) != held:
                raise InputError(
                    f'batch array {name!r} of shape {np.shape(x)}: its first axis must be the '
                    f'{held} rows that this process holds of {size}'
                )

    def put(self, batch: Mapping[str, np.ndarray], size: int) -> dict[str, jax.Array]:
        """The rows that are held of a batch of `size`, as global arrays on the mesh.

        Raises:
          InputError: as `check_batch`.
        """
        self.check_batch(batch, size)
        held = self.held(size)

        def piece(x, index):
            first = np.searchsorted(held, _start(index))
            return x[first : first + size // self.parts]

        return {
            name: jax.make_array_from_callback(
                (size, *x.shape[1:]), self.sharding, functools.partial(piece, x)
            )
            for name, x in batch.items()
        }

    @property
    def _most(self) -> int:
        return self.sharding.mesh.size  # rows that divide whatever the rules are

    def _indices(self, size: int) -> dict:
        return self.sharding.devices_indices_map((size,))


def _start(index: tuple[slice, ...]) -> int:
    return index[0].start or 0
