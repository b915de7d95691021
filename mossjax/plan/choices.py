"""How a config may be run: slice, layout, rows at a time and remat, none of which changes what it
computes."""

from collections.abc import Iterator, Sequence
import dataclasses

from ml_collections import ConfigDict

from mossjax.errors import InputError
from mossjax.models.lm.config import LMConfig
from mossjax.nn.remat import POLICIES
from mossjax.parallel import chips, slices
from mossjax.parallel.mesh import AXES, MeshConfig
from mossjax.parallel.slices import Slice
from mossjax.plan import account, arithmetic, programs


@dataclasses.dataclass(frozen=True)
class Choice:
    """
    Attributes:
      slice, mesh: on what, and how it is divided, in numbers; mesh.slices of the slice.
      rows: on each part of the mesh that holds rows, at a time. parts: of a batch, one after
        another.
      remat: a name of `nn.remat.POLICIES`.
    """

    slice: Slice
    mesh: MeshConfig
    rows: int
    parts: int
    remat: str

    @property
    def chips(self) -> int:
        return self.slice.chips * self.mesh.slices

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.mesh.data, self.mesh.fsdp, self.mesh.tensor

    @property
    def name(self) -> str:
        """As the user would ask for it, '2xv6e-256'."""
        return f'{self.mesh.slices}x{self.slice.name}' if self.mesh.slices > 1 else self.slice.name

    def apply(self, config: ConfigDict) -> ConfigDict:
        """The config with this choice in it."""
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.model.remat, config.accumulate = self.remat, self.parts
            config.mesh = ConfigDict(dataclasses.asdict(self.mesh))
            if self.mesh.tensor > 1:
                config.rules = 'fsdp_tensor'
        return config

    def shown(self) -> str:
        """Its keys, as on the command line of a run."""
        keys = {'model.remat': self.remat, 'accumulate': self.parts}
        keys |= {f'mesh.{name}': n for name, n in dataclasses.asdict(self.mesh).items()}
        if self.mesh.tensor > 1:
            keys |= {'rules': 'fsdp_tensor'}
        return ' '.join(f'--config.{key}={value}' for key, value in keys.items())


@dataclasses.dataclass(frozen=True)
class Sized:
    """A choice, and what arithmetic says of it: bytes of a device, seconds of a step."""

    choice: Choice
    memory: int
    seconds: float

    @property
    def limit(self) -> float:
        return chips.CHIPS[self.choice.slice.generation].memory

    def chip_hours(self, steps: int) -> float:
        return steps * self.seconds * self.choice.chips / 3600


def meshes(config: ConfigDict, names: Sequence[str], tensor: Sequence[int]):
    """(slice, mesh in numbers) for each slice and each size of the tensor axis, the config's if
    none is named; of another size than the config's, fsdp takes the chips that are left.

    Raises:
      InputError: no such slice, or the config's mesh does not fit it.
    """
    given = MeshConfig(**config.mesh)
    for name in names:
        slice_, count = slices.several(name, '--slices')
        data = given.data if given.data == -1 else given.data // given.slices * count
        for size in tensor or [given.tensor]:
            fsdp = given.fsdp if size == given.tensor or data == -1 else -1
            try:
                yield slice_, in_numbers(MeshConfig(data, fsdp, size, count), slice_)
            except InputError as error:
                raise InputError(f'--slices {name}: {error}') from error


def in_numbers(mesh: MeshConfig, slice_: Slice) -> MeshConfig:
    """The mesh of so many of a slice, without -1.

    Raises:
      InputError: it does not fit.
    """
    return MeshConfig(*mesh.shape(slice_.chips * mesh.slices), mesh.slices)


def choices(
    config: ConfigDict, names: Sequence[str], *, tensor: Sequence[int] = (),
    rows: Sequence[int] = (), remat: Sequence[str] = (),
) -> list[Choice]:
    """Every combination; of what is not given, the config's own.

    Raises:
      InputError: a slice, mesh or policy that does not exist or fit, rows that do not divide, or a
        config of another network.
    """
    programs.check_task(config)
    for policy in remat:
        if policy not in POLICIES:
            raise InputError(f'--remat {policy}: choose from {", ".join(POLICIES)}')
    found = []
    for slice_, mesh in meshes(config, names, tensor):
        for count, parts in _rows(config, slice_, mesh, rows):
            found += [
                Choice(slice_, mesh, count, parts, policy)
                for policy in remat or [config.model.remat]
            ]
    return found


def _rows(config, slice_: Slice, mesh: MeshConfig, rows: Sequence[int]) -> Iterator:
    """(rows at a time, parts of the batch) of a layout."""
    each = rows_of_a_part(config, slice_, mesh)
    wanted = rows or [each // config.accumulate if each % config.accumulate == 0 else 0]
    for count in wanted:
        if count < 1 or each % count:
            raise InputError(
                f'{slice_.name}: {each} rows for each part that holds rows do not divide into '
                f'{f"parts of {count}" if rows else f"config.accumulate={config.accumulate}"}; '
                f'--rows may be {", ".join(map(str, divisors(each)))}'
            )
        yield count, each // count


def rows_of_a_part(config: ConfigDict, slice_: Slice, mesh: MeshConfig) -> int:
    """Of a batch, on each part of the mesh that holds rows.

    Raises:
      InputError: they are not all of so many.
    """
    batch, holders = config.data.batch_size, mesh.data * mesh.fsdp
    if batch % holders:
        near = {max(batch // holders, 1) * holders, (batch // holders + 1) * holders}
        raise InputError(
            f'config.data.batch_size is {batch}, no multiple of the {holders} parts of '
            f'{slice_.name} that hold rows; the nearest: {", ".join(map(str, sorted(near)))}; '
            'or set config.mesh.tensor'
        )
    return batch // holders


def divisors(n: int) -> list[int]:
    return [i for i in range(1, n + 1) if n % i == 0]


class Sizes:
    """Choices -> what arithmetic says of them.

    Args:
      context: positions of a row.
    """

    def __init__(self, config: ConfigDict, context: int):
        self._config, self._context = config, context
        self._state: dict[tuple, tuple] = {}

    def __call__(self, choice: Choice) -> Sized:
        model, held = self._held(choice)
        tensor, at_once = choice.shape[2], choice.rows * self._context
        step = arithmetic.seconds(
            model, choice.remat, choice.slice.generation, self._context, at_once * choice.parts,
            tensor,
        )  # fmt: skip
        sums = held.parameters * (choice.parts > 1)  # of the gradients of the parts
        needed = arithmetic.memory(
            model, choice.remat, held.parameters + held.optimiser + sums, at_once, tensor
        )
        return Sized(choice, needed, step)

    def _held(self, choice: Choice) -> tuple[LMConfig, account.Held]:
        """(network's config, state on each device), from shapes alone."""
        key = choice.slice.generation, choice.shape
        if key not in self._state:
            mesh = chips.abstract_mesh(*key, AXES)
            task, layout = programs.task_and_layout(choice.apply(self._config), mesh)
            self._state[key] = task.config, account.Held.of(layout)
        return self._state[key]
