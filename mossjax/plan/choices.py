"""How a config may be run: slice, layout, rows at a time and remat, none of which changes what it
computes."""

from collections.abc import Iterator, Sequence
import dataclasses
import math

from ml_collections import ConfigDict

from mossjax.errors import InputError
from mossjax.models.lm.config import LMConfig
from mossjax.nn.remat import POLICIES
from mossjax.parallel import chips, slices
from mossjax.parallel.mesh import AXES, MeshConfig
from mossjax.parallel.slices import Slice
from mossjax.plan import account, arithmetic, programs

WIDEST = 8  # tensor axis that a layout is given unasked: the key-value heads divide by it


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

    @property
    def yields(self) -> float:
        """What a step is worth beside others': all take the whole batch."""
        return 1.0

    @property
    def label(self) -> str:
        return f'{self.name}, {self.rows} rows, {self.remat}'

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
    """A choice, to train or to speak (`speech.Choice`), and what arithmetic says of it: bytes of a
    device, seconds of a step."""

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

    A config whose mesh is in numbers is laid out for one slice. On others, fsdp takes the chips
    that are left too, and the tensor axis grows until the rows of a batch divide.

    Raises:
      InputError: no such slice, or the config's mesh does not fit it.
    """
    given = MeshConfig(**config.mesh)
    for name in names:
        slice_, count = slices.several(name, '--slices')
        data = given.data if given.data == -1 else given.data // given.slices * count
        anew = _of_another_slice(given, slice_, count)
        for size in tensor or [given.tensor]:
            own = size == given.tensor and not anew
            fsdp = given.fsdp if own or data == -1 else -1
            try:
                mesh = in_numbers(MeshConfig(data, fsdp, size, count), slice_)
            except InputError as error:
                raise InputError(f'--slices {name}: {error}') from error
            yield slice_, mesh if tensor or not anew else _dividing(config, mesh)


def _of_another_slice(mesh: MeshConfig, slice_: Slice, count: int) -> bool:
    """Is a mesh in numbers that of another slice than this, so many times?"""
    sizes = mesh.data // mesh.slices, mesh.fsdp, mesh.tensor
    chips_of_one = math.prod(sizes)
    return (
        min(mesh.data, *sizes) > 0
        and chips_of_one != slice_.chips
        and any(chips_of_one == other.chips for other in slices.SLICES.values())
    )


def _dividing(config: ConfigDict, mesh: MeshConfig) -> MeshConfig:
    """The mesh with the least tensor axis by which the rows of a batch divide, if one does."""
    wider = mesh
    while config.data.batch_size % (wider.data * wider.fsdp):
        if wider.fsdp % 2 or wider.tensor == WIDEST:
            return mesh
        wider = dataclasses.replace(wider, fsdp=wider.fsdp // 2, tensor=wider.tensor * 2)
    return wider


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
    """Every combination; of what is not given, the config's own. On another slice than the config
    is laid out for, so many rows at a time at most, and policies that keep no more.

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
                for policy in remat or _policies(config, slice_, mesh)
            ]
    return found


def laid_out_anew(config: ConfigDict, slice_: Slice, mesh: MeshConfig) -> bool:
    """Is the config's own mesh that of another slice?"""
    return _of_another_slice(MeshConfig(**config.mesh), slice_, mesh.slices)


def _policies(config: ConfigDict, slice_: Slice, mesh: MeshConfig) -> list[str]:
    own, names = config.model.remat, list(POLICIES)
    return names[names.index(own) :] if laid_out_anew(config, slice_, mesh) else [own]


def _rows(config, slice_: Slice, mesh: MeshConfig, rows: Sequence[int]) -> Iterator:
    """(rows at a time, parts of the batch) of a layout."""
    each = rows_of_a_part(config, slice_, mesh)
    wanted = rows or [each // config.accumulate if each % config.accumulate == 0 else 0]
    if not rows and laid_out_anew(config, slice_, mesh):
        holders = config.mesh.data * config.mesh.fsdp * config.accumulate
        own = max(config.data.batch_size // holders, 1)
        wanted = [max(n for n in divisors(each) if n <= own)]
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
        model, held, done = self._known(choice)
        tensor, at_once = choice.shape[2], choice.rows * self._context
        step = arithmetic.seconds(
            model, choice.remat, choice.slice.generation, self._context, at_once * choice.parts,
            tensor, done,
        )  # fmt: skip
        sums = held.parameters * (choice.parts > 1)  # of the gradients of the parts
        needed = arithmetic.memory(
            model, choice.remat, held.parameters + held.optimiser + sums, at_once, tensor
        )
        return Sized(choice, needed, step)

    def _known(self, choice: Choice) -> tuple[LMConfig, account.Held, float]:
        """(network's config, state on each device, operations a token), from shapes alone."""
        key = choice.slice.generation, choice.shape
        if key not in self._state:
            mesh = chips.abstract_mesh(*key, AXES)
            task, layout = programs.task_and_layout(choice.apply(self._config), mesh)
            done = programs.done(self._config, task, self._context)
            self._state[key] = task.config, account.Held.of(layout), done
        return self._state[key]
