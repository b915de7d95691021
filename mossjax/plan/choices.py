"""How a config may be run: slice, layout, rows at a time and remat, none of which changes what it
computes."""

from collections.abc import Iterator, Sequence
import dataclasses
import re

from ml_collections import ConfigDict

from mossjax.errors import InputError
from mossjax.models.lm.config import LMConfig
from mossjax.nn.remat import POLICIES
from mossjax.parallel import chips, slices
from mossjax.parallel.mesh import AXES, MeshConfig
from mossjax.parallel.slices import Slice
from mossjax.plan import account, arithmetic, programs

_SEVERAL = re.compile(r'(?:(\d+)x)?(.+)')


@dataclasses.dataclass(frozen=True)
class Choice:
    """
    Attributes:
      slice, mesh: on what, and how it is divided; mesh.slices of the slice.
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
        return self.mesh.shape(self.chips)

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
        if self.mesh.tensor > 1:
            keys |= {'mesh.tensor': self.mesh.tensor, 'rules': 'fsdp_tensor'}
        if self.mesh.slices > 1:
            keys |= {'mesh.slices': self.mesh.slices, 'mesh.data': self.mesh.data}
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


def find(name: str) -> tuple[Slice, int]:
    """'v5p-128' or '2xv6e-256' -> (slice, how many)."""
    count, one = _SEVERAL.fullmatch(name).groups()
    return slices.find(one, '--slices'), int(count or 1)


def meshes(config: ConfigDict, names: Sequence[str], tensor: Sequence[int]):
    """(slice, mesh) for each slice and each size of the tensor axis, the config's if none is named.

    Raises:
      InputError: no such slice, or the config's mesh does not fit it.
    """
    given = MeshConfig(**config.mesh)
    for name in names:
        slice_, count = find(name)
        mesh = given
        if count != given.slices:
            mesh = dataclasses.replace(given, slices=count, data=max(given.data, count))
        for size in tensor or [mesh.tensor]:
            divided = dataclasses.replace(mesh, tensor=size)
            try:
                divided.shape(slice_.chips * count)
            except InputError as error:
                raise InputError(f'--slices {name}: {error}') from error
            yield slice_, divided


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
    batch, chips_ = config.data.batch_size, slice_.chips * mesh.slices
    data, fsdp, _ = mesh.shape(chips_)
    holders = data * fsdp
    if batch % holders:
        raise InputError(
            f'config.data.batch_size is {batch}, no multiple of the {holders} parts of '
            f'{slice_.name} that hold rows; the nearest are {batch // holders * holders or holders}'
            f' and {(batch // holders + 1) * holders}, or set config.mesh.tensor'
        )
    each = batch // holders
    wanted = rows or [each // config.accumulate if each % config.accumulate == 0 else 0]
    for count in wanted:
        if count < 1 or each % count:
            raise InputError(
                f'{slice_.name}: {each} rows for each part that holds rows do not divide into '
                f'{f"parts of {count}" if rows else f"config.accumulate={config.accumulate}"}; '
                f'--rows may be {", ".join(map(str, divisors(each)))}'
            )
        yield count, each // count


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
