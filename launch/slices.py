"""TPU slices as launchers ask for them: `parallel.slices` with the names of the services.

Machine types and accelerator labels are those of the GKE and Cloud TPU documentation; tests
compare hosts and chips with what libtpu makes of them.
"""

import dataclasses

from mossjax.parallel import slices


@dataclasses.dataclass(frozen=True)
class Slice(slices.Slice):
    """One TPU slice; its shape is GKE's topology, chips_per_host google.com/tpu of a host.

    Attributes:
      accelerator: GKE's node label cloud.google.com/gke-tpu-accelerator.
      machine: the machine type of its hosts.
      accelerator_type: the name in the Cloud TPU API (queued resources).
      runtime: software version of the Cloud TPU API.
    """

    accelerator: str
    machine: str
    accelerator_type: str
    runtime: str


# Generation -> (GKE's label, machine type, prefix of the name in the API, runtime).
_NAMES = {
    'v5p': ('tpu-v5p-slice', 'ct5p-hightpu', 'v5p', 'v2-alpha-tpuv5'),
    'v5e': ('tpu-v5-lite-podslice', 'ct5lp-hightpu', 'v5litepod', 'v2-alpha-tpuv5-lite'),
    'v6e': ('tpu-v6e-slice', 'ct6e-standard', 'v6e', 'v2-alpha-tpuv6e'),
}


def _named(each: slices.Slice) -> Slice:
    label, machine, api, runtime = _NAMES[each.generation]
    return Slice(
        **dataclasses.asdict(each), accelerator=label, machine=f'{machine}-{each.chips_per_host}t',
        accelerator_type=f'{api}-{each.name.partition("-")[2]}', runtime=runtime,
    )  # fmt: skip


SLICES = {name: _named(each) for name, each in slices.SLICES.items()}


def find(name: str) -> Slice:
    """The slice of this name; 'v5litepod-256' is v5e-256.

    Raises:
      InputError: there is none.
    """
    return SLICES[slices.find(name, '--slice').name]
