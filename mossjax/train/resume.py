"""What a run goes on from: its last checkpoint, if it is still the same run."""

from collections.abc import Iterable

from absl import logging
from flax import traverse_util

from mossjax import checkpoint, steps
from mossjax.errors import InputError
from mossjax.files import available_memory
from mossjax.parallel import sharding
from mossjax.steps import CHECKPOINTS, as_path
from mossjax.train import state as state_lib
from mossjax.train.config import changes, defaults, is_free
from mossjax.train.state import Layout, TrainState


def saved_step(workdir) -> int | None:
    """Updates in the last whole checkpoint of a run, None if it has none.

    Raises:
      InputError: it has checkpoints, and none is whole.
    """
    return steps.newest(as_path(workdir) / CHECKPOINTS)


def read_meta(workdir, step: int | None) -> dict:
    """What the checkpoint of this step says of its run, {} for a fresh one."""
    return {} if step is None else steps.read_meta(as_path(workdir) / CHECKPOINTS, step)


def check_config(meta: dict, config: dict, named: Iterable[str]) -> None:
    """The config is that of the checkpoint, as far as it says what the run is.

    Args:
      meta: of the checkpoint, {} for a fresh run. config: as a plain dict.
      named: dotted keys that may differ nevertheless.

    Raises:
      InputError: listing what differs, or a name that is no key.
    """
    before = meta.get('config')
    old, now, usual = (
        traverse_util.flatten_dict(tree, sep='.')
        for tree in (before or {}, config, defaults().to_dict())
    )
    if unknown := [key for key in named if key not in old.keys() | now.keys()]:
        raise InputError(f'--changed names {unknown[0]!r}, which is no key of the config')
    if before is None:
        return
    # A key that was not there yet, at its default, is no change.
    found = {
        key: what for key, what in changes(before, config).items()
        if key in old or key not in usual or usual[key] != now[key]
    }  # fmt: skip
    if not found:
        return
    bound = [key for key in found if not is_free(key) and key not in set(named)]
    if bound:
        raise InputError(
            f'the run was another when step {meta["step"]} was written: '
            f'{"; ".join(f"{key} {found[key]}" for key in bound)}. Undo that, or take another '
            'workdir (its config.init_from can name this one), or go on with it: '
            f'--changed={",".join(bound)}'
        )
    logging.warning(
        'the config is another than when step %d was written: %s', meta['step'],
        '; '.join(f'{key} {what}' for key, what in found.items()),
    )


def restore(layout: Layout, workdir, step: int, meta: dict) -> TrainState:
    """The state of a checkpoint."""
    items, _ = checkpoint.restore(workdir / CHECKPOINTS, layout.abstract.items(), step)
    logging.info('resuming from step %d in %s', step, workdir)
    if meta['versions'] != (now := checkpoint.versions()):
        logging.warning('checkpoint was written with %s, this is %s: the rest of the run may '
                        'differ in the last digits', meta['versions'], now)
    return state_lib.from_items(items, step, layout)


def check_memory(layout: Layout) -> None:
    """
    Raises:
      InputError: parameters and optimiser alone are more than a device holds.
    """
    devices = layout.mesh.local_devices
    room = (devices[0].memory_stats() or {}).get('bytes_limit')
    if room is None and (free := available_memory()) is not None:  # CPU devices share the host's
        room = free // len(devices)
    needed = sharding.bytes_per_device(layout.abstract)
    if room is not None and needed > room:
        raise InputError(
            f'parameters and optimiser state take {needed / 1e9:,.1f} GB of each device, which has '
            f'{room / 1e9:,.1f} GB: take a smaller config.model or more devices (mesh '
            f'{dict(layout.mesh.shape)})'
        )
