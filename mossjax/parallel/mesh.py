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
    """The mesh over these devices (all by default), neighbours on the inner axes."""
    devices = jax.devices() if devices is None else devices
    data, fsdp, tensor = config.shape(len(devices))
    if config.slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh(
            (data // config.slices, fsdp, tensor), (config.slices, 1, 1), devices=devices
        )
    elif devices[0].platform == 'tpu':
        grid = mesh_utils.create_device_mesh((data, fsdp, tensor), devices=devices)
    else:
        grid = np.asarray(devices).reshape(data, fsdp, tensor)
    # Auto: the compiler places what the rules leave open; stated because jax's default differs.
    return jax.sharding.Mesh(grid, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))
