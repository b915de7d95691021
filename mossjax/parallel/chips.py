"""What a chip can do at most, by the name that jax gives it."""

import dataclasses

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

# Generations of TPUs by the kinds of device that jax names.
KINDS = {
    'TPU v4': 'v4', 'TPU v5 lite': 'v5e', 'TPU v5e': 'v5e', 'TPU v5': 'v5p', 'TPU v5p': 'v5p',
    'TPU v6 lite': 'v6e', 'TPU v6e': 'v6e', 'TPU7x': 'tpu7x', 'TPU v7x': 'tpu7x',
}  # fmt: skip
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What jax calls one device; figures of the makers' data sheets.

    Attributes:
      flops: dense bfloat16 operations a second. clock: cycles a second. bandwidth: bytes a second
        of HBM. memory: bytes of HBM that a program may use. link: bytes a second of one link, one
        way. axes: of the torus, two links each. cores: that share a device's kernels.
    """

    flops: float
    clock: float
    bandwidth: float
    link: float
    axes: int
    memory: float
    cores: int = 1


CHIPS = {
    'v5e': Chip(197e12, 1.5e9, 0.819e12, 45e9, 2, 15.75 * GIB),
    'v5p': Chip(459e12, 1.75e9, 2.765e12, 90e9, 3, 95.73 * GIB, cores=2),
    'v6e': Chip(918e12, 1.75e9, 1.638e12, 90e9, 2, 31.24 * GIB),
}
# Of devices of which no more is wanted.
_PEAK_FLOPS = {'TPU v4': 275e12, 'NVIDIA H100 80GB HBM3': 989e12, 'NVIDIA H200': 989e12}


def peak_flops(device: jax.Device) -> float | None:
    """Dense bfloat16 operations a second of a device, None where nobody has said."""
    chip = CHIPS.get(KINDS.get(device.device_kind))
    return chip.flops if chip else _PEAK_FLOPS.get(device.device_kind)


def abstract_mesh(generation: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> AbstractMesh:
    """A mesh of devices of a generation, none in particular: programs can be lowered on it."""
    kind = next(kind for kind, name in KINDS.items() if name == generation)
    return AbstractMesh(
        shape, axes, axis_types=(AxisType.Auto,) * len(axes),
        abstract_device=AbstractDevice(kind, None, 'tpu'),
    )  # fmt: skip


def memory_in_use(device: jax.Device) -> dict[str, float]:
    """GiB of the device's memory that are in use, and were at most; {} where it does not say."""
    stats = device.memory_stats() or {}
    names = {'bytes_in_use': 'hbm_gib', 'peak_bytes_in_use': 'hbm_peak_gib'}
    return {name: stats[key] / GIB for key, name in names.items() if key in stats}
