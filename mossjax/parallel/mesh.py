"""The device mesh: three named axes, and slices of a multi-slice job over the first."""

import dataclasses
import math

import jax
from jax.experimental import mesh_utils
import numpy as np

from mossjax.errors import InputError
from mossjax.values import LARGEST, SIZE, Range, ranged

AXES = ('data', 'fsdp', 'tensor')
_PARTS = Range(-1, LARGEST, whole=True)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices per axis; one axis may be -1, it takes the devices that are left.

    Attributes:
      data: copies of the parameters that see different rows.
      fsdp: parameters and rows are both divided over it.
      tensor: heads, hidden units and vocabulary are divided over it.
      slices: TPU slices joined by the data-centre network; they are part of `data` (only the
        gradient sum crosses it).
    """

    data: int = ranged(_PARTS, 1)
    fsdp: int = ranged(_PARTS, -1)
    tensor: int = ranged(_PARTS, 1)
    slices: int = ranged(SIZE, 1)

    def shape(self, devices: int) -> tuple[int, int, int]:
        """Sizes of AXES for this many devices.

        Raises:
          InputError: they do not fit.
        """
        sizes = [self.data, self.fsdp, self.tensor]
        bad = [f'{name}={n}' for name, n in zip(AXES, sizes, strict=True) if n < 1 and n != -1]
        if bad or sizes.count(-1) > 1:
            raise InputError(f'mesh: sizes are 1 or more, and at most one is -1: {self}')
        known = math.prod(n for n in sizes if n != -1)
        sizes = [devices // known if n == -1 else n for n in sizes]
        if math.prod(sizes) != devices:
            raise InputError(
                f'mesh: data x fsdp x tensor = {" x ".join(map(str, sizes))} is not the number '
                f'of devices, {devices}; set one of them to -1 or change the product'
            )
        if sizes[0] % self.slices:
            raise InputError(
                f'mesh: data={sizes[0]} is not a multiple of slices={self.slices}; the slices '
                'are laid along data'
            )
        return tuple(sizes)


def make_mesh(config: MeshConfig, devices=None) -> jax.sharding.Mesh:
    """The mesh over these devices (all by default), neighbours on the inner axes.

    TPU devices know their slice: the slices follow each other along `data`. Of others the order
    given is kept.

    Raises:
      InputError: the sizes do not fit the number of devices or of slices.
    """
    devices = jax.devices() if devices is None else devices
    data, fsdp, tensor = config.shape(len(devices))
    within = (data // config.slices, fsdp, tensor)
    grid = np.concatenate([_grid(within, part) for part in _by_slice(devices, config.slices)])
    # Auto: the compiler places what the rules leave open; stated because jax's default differs.
    return jax.sharding.Mesh(grid, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def _by_slice(devices, slices: int) -> list[list]:
    """The devices of each slice, in the order of the slices' numbers."""
    found: dict[int, list] = {}
    for device in devices:
        found.setdefault(getattr(device, 'slice_index', None) or 0, []).append(device)
    if slices == 1 and devices[0].platform != 'tpu':
        return [list(devices)]
    sizes = {number: len(found[number]) for number in sorted(found)}
    if len(found) != slices:
        raise InputError(
            f'mesh: config.mesh.slices is {slices}, the {len(devices)} devices are of '
            f'{len(found)} slices; set config.mesh.slices={len(found)}'
        )
    if len(set(sizes.values())) > 1:
        raise InputError(
            f'mesh: the slices have different numbers of devices, {sizes}; slices of one job must '
            'be alike, and all of their hosts must have joined'
        )
    return [found[number] for number in sizes]


def _grid(shape: tuple[int, int, int], devices: list) -> np.ndarray:
    """Devices of one slice in this shape, such that inner axes are short ways on a TPU."""
    if devices[0].platform != 'tpu':
        return np.asarray(devices).reshape(shape)
    # An axis of the torus is split only where one of the mesh is no product of such axes.
    return mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
