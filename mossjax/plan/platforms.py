"""JAX_PLATFORMS may name a kind of device that this machine, or this installation, lacks."""

from collections.abc import Mapping, MutableMapping
import os
import pathlib

# Named in JAX_PLATFORMS -> what brings it.
_BRINGS = {
    'tpu': "pip install 'mossjax[tpu]', on a TPU host",
    'cuda': "pip install 'jax[cuda12]', on a machine with an NVIDIA GPU",
    'rocm': "jax's plug-in for ROCm, on a machine with an AMD GPU",
}
_BRINGS['gpu'] = _BRINGS['cuda']
# What libtpu would ask a metadata server for.
_ALONE = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
}


def remedy(asked: str) -> str:
    """What to do where no device of JAX_PLATFORMS is found."""
    brings = list(dict.fromkeys(_BRINGS[n] for n in asked.split(',') if n in _BRINGS))
    other = f'install that backend: {"; ".join(brings)}' if brings else (
        f'name one of cpu, {", ".join(_BRINGS)}'
    )  # fmt: skip
    return f'unset JAX_PLATFORMS, jax then takes what there is; or {other}'


def fault(environment: Mapping[str, str] = os.environ) -> str | None:
    """What JAX_PLATFORMS keeps jax from, asked of jax itself; None if it starts."""
    asked = environment.get('JAX_PLATFORMS', '')
    if not asked:
        return None
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # of CUDA without its plug-in the latter
        said = str(error).split(' (set JAX_PLATFORMS=')[0]
        why = f' ({said})' if said else ''
        return f'JAX_PLATFORMS={asked}: no such device was found{why}; {remedy(asked)}'
    return None


def say_no_tpu(
    environment: MutableMapping[str, str] = os.environ, dev: pathlib.Path = pathlib.Path('/dev')
) -> None:
    """Spares libtpu its search, and the user its five lines about it, where there is no chip.

    It is installed on such machines to compile for absent slices. Read by libtpu when jax starts,
    so call this before; what the environment says already stays.
    """
    if any(dev.glob('accel*')) or any(dev.glob('vfio/[0-9]*')):
        return
    for name, value in _ALONE.items():
        environment.setdefault(name, value)
