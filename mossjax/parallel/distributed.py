"""Joining the processes of a pod, and asking which one we are."""

import os

from absl import logging
import jax

from mossjax.errors import InputError
from mossjax.parallel import roll_call

# Variables that decide whether the processes find each other; printed when they do not.
_ENVIRONMENT = (
    'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID', 'TPU_WORKER_HOSTNAMES',
    'TPU_WORKER_ID', 'MEGASCALE_COORDINATOR_ADDRESS', 'MEGASCALE_NUM_SLICES',
)


def start(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None,
    *, timeout_s: int = 1800,
) -> None:
    """Joins all processes of the job; call it before any other use of jax.

    On a TPU pod no argument is needed, nor where JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID are set (`launch.local` sets them). The time-out is long because hosts of a
    restarted pod come back minutes apart.

    Raises:
      InputError: the others were not reached in time, named where the environment says how many
        there are; what is there besides.
    """
    try:
        if processes is None and 'JAX_NUM_PROCESSES' in os.environ:
            processes, process = (
                int(os.environ.get(name, '')) for name in ('JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
            )
        given = (coordinator, processes, process)
        if about := roll_call.known(os.environ) if None in given else given:
            roll_call.roll_call(*about, timeout_s)
        jax.distributed.initialize(
            coordinator, processes, process, initialization_timeout=timeout_s
        )
    except (RuntimeError, ValueError) as error:  # InputError is one of these
        seen = ', '.join(f'{k}={os.environ[k]}' for k in _ENVIRONMENT if k in os.environ)
        raise InputError(
            f'cannot join the other processes ({error}). Environment: {seen or "nothing set"}. '
            'Check that every host runs this command, that the coordinator port is open in the '
            'firewall, and that no MEGASCALE_* variable is left from an earlier job'
        ) from error
    logging.info('process %d of %d, %d devices here, %d in all', jax.process_index(),
                 jax.process_count(), jax.local_device_count(), jax.device_count())


def is_first() -> bool:
    """True on the one process that writes logs."""
    return jax.process_index() == 0


def preempted(step: int) -> bool:
    """True on all processes at the same step, once the platform has announced preemption.

    Must be called at every step by every process; False without `start`.
    """
    if not jax.distributed.is_initialized():
        return False
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)
