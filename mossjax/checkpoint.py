"""Checkpoints: the only file that knows Orbax.

A checkpoint is a directory named by its step with the items `params`, `opt_state`, `extra` and
`meta` (JSON: step, versions, and what the caller adds). Each item is restored on its own, onto any
mesh. A step exists only once it is complete: a process killed while it writes, or a full disk,
leaves the step before untouched.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import importlib.metadata
import logging as logging_lib
import os
import shutil
import sys
from typing import Any

from absl import logging
import jax
import orbax.checkpoint as ocp

from mossjax import paths, steps
from mossjax.errors import InputError
from mossjax.files import FULL
from mossjax.parallel.sharding import check_shapes
from mossjax.steps import TREES, as_path

PARAMS = ('params',)
# How libraries say that the file system takes no more, where they do not keep its error number.
_FULL_TEXTS = ('No space left', 'quota exceeded', 'File too large')
_EXPECTED = 'Skipping merge of OCDBT checkpoints'  # one folder an array is meant to be so
_full_in_threads: list[BaseException] = []  # as Orbax's threads have logged them in this run


def _ours(record) -> bool:
    """Orbax tells each of its steps at INFO; a training log should be readable.

    What its threads raise comes back from the next call; their traces are dropped.
    """
    if 'orbax' not in record.pathname:
        return True
    if record.exc_info and (full := _full_disk(record.exc_info[1])):
        _full_in_threads.append(full)
    said = record.exc_info or _EXPECTED in str(record.msg)
    return record.levelno >= logging_lib.WARNING and not said


logging.get_absl_logger().addFilter(_ours)


class Checkpoints:
    """The checkpoints of one run, written in the background, the last `keep` kept.

    Args:
      milestone_every: steps that are multiples of it are kept for good, 0 for none.
      directory: made if absent; temporary directories of writers that died are removed, steps that
        are torn get another name (see `steps`).

    Raises:
      InputError: there are steps, and none is whole.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2, milestone_every: int = 0):
        self.directory = as_path(directory)
        paths.folder_to_write(self.directory, 'the folder of checkpoints', buckets=True)
        steps.set_aside(self.directory)
        if jax.process_index() == 0:
            # Not left to Orbax, which in a bucket would also remove what only looks unfinished.
            steps.remove_unfinished(self.directory)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=milestone_every or None, enable_async_checkpointing=True
        )
        self._bytes = 0  # of the last save
        _full_in_threads.clear()
        with _disk(self.directory):
            self._manager = ocp.CheckpointManager(self.directory, options=options)

    def latest(self) -> int | None:
        """The last complete step, None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, items: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Writes the trees of TREES; returns once the arrays may be overwritten.

        Raises:
          InputError: the disk took no more, in this save or in the one before.
        """
        args = {name: ocp.args.PyTreeSave(items[name]) for name in TREES if _leaves(items[name])}
        empty = [name for name in TREES if name not in args]
        content = {**meta, 'step': step, 'versions': versions(), 'empty': empty}
        self._bytes = sum(x.nbytes for x in jax.tree.leaves([items[name] for name in args]))
        with _disk(self.directory, self._bytes):
            self._manager.save(step, args=ocp.args.Composite(
                **args, meta=ocp.args.JsonSave(content)
            ))

    def wait(self) -> None:
        """Until the last save is on disk.

        Raises:
          InputError: the disk took no more.
        """
        with _disk(self.directory, self._bytes):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Waits and releases; raises as `wait` does."""
        with _disk(self.directory, self._bytes):
            self._manager.close()

    def restore(self, abstract: Mapping[str, Any], step: int | None = None) -> tuple[dict, dict]:
        """See `restore`."""
        return restore(self.directory, abstract, step)


def restore(
    directory: str | os.PathLike, abstract: Mapping[str, Any], step: int | None = None
) -> tuple[dict, dict]:
    """(the trees asked for, meta) of a step, the last whole one by default.

    Args:
      abstract: name -> tree of ShapeDtypeStructs with shardings; the result is laid out so.

    Raises:
      InputError: there is no such step, it is torn, or names or shapes of parameters differ.
    """
    directory = as_path(directory)
    wanted = {name: tree for name, tree in abstract.items() if _leaves(tree)}
    step = steps.find(directory, step, wanted)
    meta = steps.read_meta(directory, step)
    where = f'checkpoint {directory}, step {step}'
    try:
        lacking = [name for name in wanted if name in meta.get('empty', ())]
        if lacking:
            raise ValueError(f'it has no {", ".join(lacking)}')
        if 'params' in wanted:
            shapes = read_shapes(directory, step)
            check_shapes(shapes, wanted['params'], f'{where}: its parameters')
        found = {
            name: ocp.PyTreeCheckpointHandler().restore(
                directory / str(step) / name, args=ocp.args.PyTreeRestore(
                    tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree)
                )
            )
            for name, tree in wanted.items()
        }  # fmt: skip
    except (InputError, RuntimeError, MemoryError):  # of memory, or of the devices
        raise
    except Exception as error:  # Orbax wraps what it meets in one without a type
        said = str(error.__cause__ or error).split(' [tensorstore_spec')[0]
        raise InputError(
            f'{where} cannot be read as {", ".join(wanted)}: {said}. If optim.frozen or the '
            'optimiser changed, start a new workdir from its parameters: --config.init_from. If '
            f'its files are damaged, move the folder {step} away: the run then goes on from the '
            'checkpoint before it'
        ) from error
    return {**abstract, **found}, meta


def restore_params(
    directory: str | os.PathLike, abstract: dict, step: int | None = None
) -> tuple[dict, dict]:
    """(parameters, meta) of a checkpoint directory; nothing else is read from disk.

    Raises:
      InputError: there is no checkpoint, or the parameters are not those of `abstract`.
    """
    trees, meta = restore(directory, {'params': abstract}, step)
    return trees['params'], meta


def read_meta(directory: str | os.PathLike, step: int | None = None) -> dict:
    """The JSON item of a checkpoint.

    Raises:
      InputError: there is no checkpoint, or the step is not one.
    """
    directory = as_path(directory)
    return steps.read_meta(directory, steps.find(directory, step, PARAMS))


def versions() -> dict[str, str]:
    """Of the packages whose change can change numbers."""
    names = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
    return {name: importlib.metadata.version(name) for name in names}


def _leaves(tree) -> bool:
    return bool(jax.tree.leaves(tree))


@contextlib.contextmanager
def _disk(directory, needed: int = 0):
    """Errors of a full disk as InputError, whichever of Orbax's threads met it first.

    When a write fails, other threads still write into the folder of this save while it is taken
    down: what surfaces may be that a file is missing. So the chain of causes is looked at, what the
    threads have logged meanwhile, and the disk itself.

    Args:
      needed: bytes of what was to be written.
    """
    try:
        yield
    except Exception as error:
        cause = _full_disk(error) or next(iter(_full_in_threads), None)
        if cause is None and not _takes(directory, needed):
            cause = error
        if cause is None:
            raise
        logging.error('%s', cause)
        _drop_late_traces()
        raise InputError(
            f'{directory}: the disk takes no more while a checkpoint is written. Earlier '
            'checkpoints there are intact: free space (or lower config.keep) and run the '
            'same command again to resume from the last one'
        ) from error


def _drop_late_traces() -> None:
    """Writes that end after a failed save find its event loops closed, and print that."""
    shown = sys.excepthook

    def hook(kind, error, trace):
        if str(error) != 'Event loop is closed':
            shown(kind, error, trace)

    sys.excepthook = hook


def _full_disk(error: BaseException | None) -> BaseException | None:
    """The error of a full disk in a chain of causes."""
    while error is not None:
        if getattr(error, 'errno', None) in FULL or any(t in str(error) for t in _FULL_TEXTS):
            return error
        error = error.__cause__ or error.__context__
    return None


def _takes(directory, needed: int) -> bool:
    """Whether a local disk has room for so many bytes more, and takes a file now."""
    if '://' in str(directory):
        return True
    try:
        paths.try_file(directory)
        return shutil.disk_usage(directory).free > needed
    except OSError as error:
        return error.errno not in FULL


# ------------------------------------------------------- single arrays, for those who stream them


def find_step(
    directory: str | os.PathLike, step: int | None = None, items: Sequence[str] = PARAMS
) -> int:
    """The step asked for, or the last one that has these items, whole.

    Raises:
      InputError: there is none.
    """
    return steps.find(directory, step, items)


def read_shapes(directory: str | os.PathLike, step: int, item: str = 'params') -> dict:
    """Shapes and dtypes of the arrays of an item, as a nested dict."""
    metadata = ocp.PyTreeCheckpointHandler().metadata(as_path(directory) / str(step) / item)
    tree = getattr(metadata, 'tree', metadata)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree,
        is_leaf=lambda x: hasattr(x, 'shape') and hasattr(x, 'dtype'),
    )


def lay_out(
    directory: str | os.PathLike,
    shapes: Mapping[str, tuple[tuple[int, ...], Any]],
    pieces: Mapping[str, tuple[int, ...]],
    meta: Mapping[str, Any],
) -> None:
    """A checkpoint of step 0 with empty arrays, to be filled through `open_array`.

    Orbax writes the checkpoint with a placeholder for every array, which is then replaced by an
    array of the real shape, one file a piece, so that what is filled in stays when the writer dies.

    Args:
      shapes: {slash-joined path: (shape, dtype)}. pieces: {path: shape of one file}.
      meta: the JSON item.
    """
    import numpy as np
    import tensorstore as ts

    tree: dict = {}
    for path, (_, dtype) in shapes.items():
        *parents, last = path.split('/')
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = np.zeros((1,), dtype)
    handlers = {
        'params': ocp.PyTreeCheckpointHandler(use_ocdbt=False),
        'meta': ocp.JsonCheckpointHandler(),
    }
    options = ocp.CheckpointManagerOptions(
        cleanup_tmp_directories=True, enable_async_checkpointing=False
    )
    content = {**meta, 'step': 0, 'versions': versions(), 'empty': ['opt_state', 'extra']}
    with _disk(directory), ocp.CheckpointManager(
        as_path(directory), options=options, item_handlers=handlers
    ) as manager:
        manager.save(0, args=ocp.args.Composite(
            params=ocp.args.PyTreeSave(tree), meta=ocp.args.JsonSave(content)
        ))
    for path, (shape, dtype) in shapes.items():
        spec = {
            **_spec(directory, path, 0),
            'metadata': {
                'shape': list(shape), 'chunks': list(pieces[path]), 'compressor': None,
                'dtype': 'bfloat16' if dtype.name == 'bfloat16' else dtype.str,
            },
            'create': True, 'delete_existing': True,
        }  # fmt: skip
        with _disk(directory):
            ts.open(spec).result()


@contextlib.contextmanager
def array_errors(directory: str | os.PathLike) -> Iterator[None]:
    """What goes wrong while arrays are read or written, as InputError.

    Raises:
      InputError: the disk is full, or a piece of an array is missing or damaged.
    """
    try:
        with _disk(directory):
            yield
    except (ValueError, KeyError) as error:
        said = str(error).split(' [')[0]
        raise InputError(
            f'checkpoint {directory}: a piece of an array is missing or damaged ({said}); copy the '
            'checkpoint again'
        ) from error


def open_array(directory: str | os.PathLike, path: str, step: int, item: str = 'params'):
    """One array of an item as tensorstore's: sliced, then `.read()` or `.write(x)`.

    Both may fail: call them inside `array_errors`.

    Raises:
      InputError: it cannot be opened.
    """
    import tensorstore as ts

    try:
        return ts.open(_spec(directory, path, step, item), open=True).result()
    except ValueError as error:
        raise InputError(
            f'checkpoint {directory}, step {step}: {path} cannot be opened ({error}); copy the '
            'checkpoint again'
        ) from error


def _spec(directory, path: str, step: int, item: str = 'params') -> dict:
    """Where Orbax keeps an array: a folder of its own, or a key of the item's database."""
    folder = as_path(directory) / str(step) / item
    base = str(folder) if '://' in str(folder) else f'file://{folder}'
    name = path.replace('/', '.')
    if (folder / 'manifest.ocdbt').exists():
        kvstore = {'driver': 'ocdbt', 'base': f'{base}/', 'path': f'{name}/'}
    else:
        kvstore = f'{base}/{name}/'
    # Data like the fill value is stored too: a piece that is not there was lost or not written.
    return {
        'driver': 'zarr', 'kvstore': kvstore, 'store_data_equal_to_fill_value': True,
        'fill_missing_data_reads': False,
    }
