"""TPU slices by name: the one table that all launchers read.

A name is generation-size, as users and the Cloud TPU API write it: v5p counts TensorCores (two a
chip), v5e and v6e count chips. Topologies, machine types and accelerator labels are those of the
GKE and Cloud TPU documentation; tests compare hosts and chips with what libtpu makes of them.
"""

import dataclasses
import difflib
import math

from mossjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Slice:
    """One TPU slice.

    Attributes:
      name: 'v5p-128'.
      topology: chips along each axis, '4x4x4'.
      accelerator: GKE's node label cloud.google.com/gke-tpu-accelerator.
      machine: the machine type of its hosts.
      chips_per_host: google.com/tpu of a host.
      accelerator_type: the name in the Cloud TPU API (queued resources).
      runtime: software version of the Cloud TPU API.
    """

    name: str
    topology: str
    accelerator: str
    machine: str
    chips_per_host: int
    accelerator_type: str
    runtime: str

    @property
    def chips(self) -> int:
        return math.prod(int(n) for n in self.topology.split('x'))

    @property
    def hosts(self) -> int:
        return self.chips // self.chips_per_host


# Chips -> topology. Beyond one host v5e and v6e have four chips a host, up to one host eight.
_FLAT = {
    1: '1x1', 4: '2x2', 8: '2x4', 16: '4x4', 32: '4x8', 64: '8x8', 128: '8x16', 256: '16x16',
}  # fmt: skip
_CUBE = {
    4: '2x2x1', 8: '2x2x2', 16: '2x2x4', 32: '2x4x4', 64: '4x4x4', 128: '4x4x8', 256: '4x8x8',
    512: '8x8x8', 1024: '8x8x16', 2048: '8x16x16',
}  # fmt: skip


def _flat(generation: str, accelerator: str, machine: str, api: str, runtime: str) -> list[Slice]:
    slices = []
    for chips, topology in _FLAT.items():
        on_host = min(chips, 8) if chips <= 8 else 4
        slices.append(Slice(
            f'{generation}-{chips}', topology, accelerator, f'{machine}-{on_host}t', on_host,
            f'{api}-{chips}', runtime,
        ))  # fmt: skip
    return slices


SLICES = {
    each.name: each
    for each in [
        *(
            Slice(f'v5p-{2 * chips}', topology, 'tpu-v5p-slice', 'ct5p-hightpu-4t', 4,
                  f'v5p-{2 * chips}', 'v2-alpha-tpuv5')
            for chips, topology in _CUBE.items()
        ),
        *_flat('v5e', 'tpu-v5-lite-podslice', 'ct5lp-hightpu', 'v5litepod', 'v2-alpha-tpuv5-lite'),
        *_flat('v6e', 'tpu-v6e-slice', 'ct6e-standard', 'v6e', 'v2-alpha-tpuv6e'),
    ]
}  # fmt: skip


def find(name: str) -> Slice:
    """The slice of this name; 'v5litepod-256' is v5e-256.

    Raises:
      InputError: there is none.
    """
    known = name.replace('v5litepod-', 'v5e-')
    if known in SLICES:
        return SLICES[known]
    close = difflib.get_close_matches(known, SLICES) or SLICES
    raise InputError(f'--slice {name}: no such slice; there are {", ".join(close)}')
