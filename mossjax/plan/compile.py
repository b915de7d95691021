"""Compiling the real training step for a TPU slice that is not there.

libtpu holds the whole TPU compiler and runs on any machine: what does not lower, or does not fit
the memory of a chip, fails here. It proves no speed and no numbers.
"""

import dataclasses
import hashlib
import math
import os
import re
import time

import jax

from mossjax.errors import InputError

# Read by libtpu when it is loaded. Without them it asks a metadata server that does not exist,
# and a second process that compiles aborts.
_ENVIRONMENT = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


class OutOfMemory(InputError):
    """The program does not fit; `needed` and `limit` are in bytes where the compiler says them."""

    def __init__(self, message: str, needed: int | None, limit: int | None):
        super().__init__(message)
        self.needed, self.limit = needed, limit


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device, as the compiler assigned them.

    Attributes:
      arguments: state and batch. outputs: of which `aliased` reuse the arguments' place.
      temporaries: activations, gathered weights, gradients.
      peak: the compiler's own peak, which may lie below what it set aside.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    peak: int

    @property
    def total(self) -> int:
        """Set aside on each device for one step."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


def devices(topology: str, slices: int = 1) -> list:
    """Devices of an absent slice such as 'v5p:4x4x4' or 'v6e:8x8', or of several alike.

    Asked for as it really is: four chips a host, and links that wrap around along each axis that
    spans the torus (multiples of 4 on v5p, 16 on v5e and v6e).

    Raises:
      InputError: libtpu is not installed or does not know the slice.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    generation, _, shape = topology.partition(':')
    sizes = ([int(n) for n in re.findall(r'\d+', shape)] + [1, 1, 1])[:3]
    whole = 4 if generation in ('v4', 'v5p') else 16
    try:
        described = topologies.get_topology_desc(
            platform='tpu', topology_name=topology,
            chips_per_host_bounds=tuple(map(min, sizes, (2, 2, 1))),
            wrap=tuple(n % whole == 0 for n in sizes),
            **({'num_slices': slices} if slices > 1 else {}),
        )
    except Exception as error:
        raise InputError(
            f'topology {topology!r} cannot be described ({_first_line(error)}). It looks like '
            "v5p:4x4x4, and the compiler comes with: pip install 'jax[tpu]'"
        ) from error
    return list(described.devices)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def program_hash(lowered) -> str:
    """sha256 of the lowered program's text, which holds no source locations."""
    return hashlib.sha256(without_kernels(lowered.as_text()).encode()).hexdigest()


def without_kernels(text: str) -> str:
    """The text without the bodies of Pallas kernels: their bytes hold paths of source files.

    The calls with their operands stay, among them tables whose shapes follow the block sizes.
    """
    return re.sub(r'(body\\22: \\22)[A-Za-z0-9+/=]+', r'\1', text)


def compile_for(
    lowered, topology: str, options: dict | None = None, dump: str | None = None
) -> tuple[Memory, float]:
    """(memory on each device, seconds it took to compile).

    Args:
      options: the compiler's, beside those that the program was jitted with.
      dump: directory for what the compiler writes on its way.

    Raises:
      OutOfMemory: the chip's memory is too small for the program.
    """
    began = time.monotonic()
    options = {**(options or {}), **({'xla_dump_to': dump} if dump else {})}
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        raise _typed(error, topology) from error
    stats = compiled.memory_analysis()
    memory = Memory(
        stats.argument_size_in_bytes, stats.output_size_in_bytes, stats.alias_size_in_bytes,
        stats.temp_size_in_bytes, stats.peak_memory_in_bytes,
    )
    return memory, time.monotonic() - began


def _typed(error: Exception, topology: str) -> Exception:
    text = str(error)
    if 'RESOURCE_EXHAUSTED' not in text and 'Oom' not in text:
        return error
    sizes = re.search(
        r'([\d.]+)([KMG])\)? (?:of|exceeds available \w+) \(?([\d.]+)([KMG])', text
    )
    needed, limit = (
        (_bytes(*sizes.group(1, 2)), _bytes(*sizes.group(3, 4))) if sizes else (None, None)
    )
    kind = 'VMEM of a kernel' if 'vmem' in text.lower() else 'HBM'
    said = f'{sizes.group(0)}' if sizes else text.splitlines()[0]
    return OutOfMemory(
        f'{topology}: the step does not fit ({kind}: {said}). Use more chips, fewer rows on each, '
        "a shorter context, or config.model.remat = 'full'", needed, limit,
    )


def _bytes(number: str, unit: str) -> int:
    return math.ceil(float(number) * 1024 ** (' KMG'.index(unit)))
