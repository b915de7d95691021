"""Compiler options: one table, by TPU generation and program.

The real step, the speaking step and what is compiled ahead of a slice all read it: what is proven
is what runs.
"""

import jax

from mossjax.parallel import chips

TRAIN, SPEAK = 'train', 'speak'


def _vmem(kib: int) -> dict[str, str]:
    return {'xla_tpu_scoped_vmem_limit_kib': str(kib)}


# Matmuls of a training step are as fast as their tiles are large, and tiles live in the scoped
# VMEM, of which the default (16 to 32 MiB) is a part of what a core has. A larger one makes the
# speaking step slower on a v6e: its matrices stream through prefetch buffers, which want the rest.
# On a v5e int8 matrices are read in larger pieces with it, a fifth faster.
TABLE: dict[tuple[str, str], dict[str, str]] = {
    ('v5e', TRAIN): _vmem(98304),
    ('v5p', TRAIN): _vmem(49152),
    ('v6e', TRAIN): _vmem(98304),
    ('v5e', SPEAK): _vmem(98304),
}


def options(generation: str | None, program: str) -> dict[str, str]:
    """Options for a generation ('v5p', ...; None: no TPU) and TRAIN or SPEAK."""
    return dict(TABLE.get((generation, program), {}))


def of_device(device: jax.Device, program: str) -> dict[str, str]:
    """Options for what runs on a device; none where it is no TPU."""
    return options(chips.KINDS.get(device.device_kind), program)


def generation(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> str | None:
    """The TPU generation of a mesh's devices, there or not; None of others."""
    device = mesh.abstract_mesh.abstract_device
    return None if device is None else chips.KINDS.get(device.device_kind)
