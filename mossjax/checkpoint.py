"""Checkpoints: the only file that knows Orbax.

A checkpoint is a directory named by its step with the items `params`, `opt_state`, `extra` and
`meta` (JSON: step, versions, and what the caller adds). Each item is restored on its own, onto any
mesh. A step exists only once it is complete: a process killed while it writes, or a full disk,
leaves the step before untouched.
"""

from collections.abc import Iterator, Mapping
import contextlib
import importlib.metadata
import logging as logging_lib
import os
from typing import Any

from absl import logging
from etils import epath
import jax
import orbax.checkpoint as ocp

from mossjax.errors import InputError
from mossjax.files import FULL
from mossjax.parallel.sharding import check_shapes

TREES = ('params', 'opt_state', 'extra')
# How libraries say that the file system takes no more, where they do not keep its error number.
_FULL_TEXTS = ('No space left', 'quota exceeded', 'File too large', 'RESOURCE_EXHAUSTED')


# Orbax warns of what is meant to be so: reading only, and one folder an array.
_EXPECTED = ('Given directory is read only', 'Skipping merge of OCDBT checkpoints')


def _ours(record) -> bool:
    """Orbax tells each of its steps at INFO; a training log should be readable."""
    expected = any(text in str(record.msg) for text in _EXPECTED)
    return record.levelno >= logging_lib.WARNING and not expected or 'orbax' not in record.pathname


logging.get_absl_logger().addFilter(_ours)


class Checkpoints:
    """The checkpoints of one run, written in the background, the last `keep` kept.

    Args:
      directory: made if absent; temporary directories of writers that died are removed.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
        self.directory = as_path(directory)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
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
        with _disk(self.directory):
            self._manager.save(step, args=ocp.args.Composite(
                **args, meta=ocp.args.JsonSave(content)
            ))

    def wait(self) -> None:
        """Until the last save is on disk.

        Raises:
          InputError: the disk took no more.
        """
        with _disk(self.directory):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        with _disk(self.directory):
            self._manager.close()

    def restore(self, abstract: Mapping[str, Any], step: int | None = None) -> tuple[dict, dict]:
        """(the trees asked for, meta) of a step, the last one by default.

        Args:
          abstract: name -> tree of ShapeDtypeStructs with shardings; the result is laid out so.

        Raises:
          InputError: there is no such step, or names or shapes of parameters differ.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise InputError(f'{self.directory} holds no checkpoint; check the path')
        return _restore(self._manager, self.directory, step, abstract)


def restore_params(
    directory: str | os.PathLike, abstract: dict, step: int | None = None
) -> tuple[dict, dict]:
    """(parameters, meta) of a checkpoint directory; nothing else is read from disk.

    Raises:
      InputError: there is no checkpoint, or the parameters are not those of `abstract`.
    """
    directory, step = _find(directory, step)
    with ocp.CheckpointManager(directory, options=_READ_ONLY) as manager:
        trees, meta = _restore(manager, directory, step, {'params': abstract})
    return trees['params'], meta


def read_meta(directory: str | os.PathLike, step: int | None = None) -> dict:
    """The JSON item of a checkpoint.

    Raises:
      InputError: there is no checkpoint, or the step is not one.
    """
    directory, step = _find(directory, step)
    try:
        with ocp.CheckpointManager(directory, options=_READ_ONLY) as manager:
            return manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
    except (ValueError, KeyError, FileNotFoundError, RecursionError) as error:
        raise InputError(
            f'{directory / str(step)} is no checkpoint, or a part of it is missing: its item meta '
            f'cannot be read ({error}). Give the directory that holds the numbered steps'
        ) from error


def versions() -> dict[str, str]:
    """Of the packages whose change can change numbers."""
    names = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
    return {name: importlib.metadata.version(name) for name in names}


_READ_ONLY = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False)


def as_path(directory) -> epath.Path:
    """A directory on a disk, made absolute (Orbax wants it), or in a bucket ('gs://...')."""
    text = os.fspath(directory)
    return epath.Path(text if '://' in text else os.path.abspath(text))


def _find(directory, step):
    directory = as_path(directory)
    steps = sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit()) \
        if directory.is_dir() else []
    if not steps or (step is not None and step not in steps):
        raise InputError(
            f'{directory} holds {"no checkpoint" if not steps else f"steps {steps}"}'
            + ('' if step is None else f', not step {step}')
            + '; give the directory that holds the numbered steps (WORKDIR/checkpoints)'
        )
    return directory, steps[-1] if step is None else step


def _shapes(item) -> dict:
    metadata = ocp.PyTreeCheckpointHandler().metadata(item)
    tree = getattr(metadata, 'tree', metadata)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree,
        is_leaf=lambda x: hasattr(x, 'shape') and hasattr(x, 'dtype'),
    )


def _restore(manager, directory, step, abstract) -> tuple[dict, dict]:
    where = f'checkpoint {directory}, step {step}: its parameters'
    wanted = {name: tree for name, tree in abstract.items() if _leaves(tree)}
    args = {
        name: ocp.args.PyTreeRestore(
            tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree)
        )
        for name, tree in wanted.items()
    }
    try:
        if 'params' in abstract:
            check_shapes(_shapes(directory / str(step) / 'params'), abstract['params'], where)
        found = manager.restore(
            step, args=ocp.args.Composite(**args, meta=ocp.args.JsonRestore())
        )
    except InputError:
        raise
    except (ValueError, KeyError, FileNotFoundError) as error:
        said = str(error).split(' [tensorstore_spec')[0]
        raise InputError(
            f'checkpoint {directory}, step {step} cannot be read as {", ".join(wanted)}: {said}. '
            'If optim.frozen or the optimiser changed, start a new workdir from its parameters '
            f'with --config.init_from; if its files are damaged, remove the folder {step} to go on '
            'from the checkpoint before it'
        ) from error
    trees = {name: found[name] if name in wanted else abstract[name] for name in abstract}
    return trees, found.meta


def _leaves(tree) -> bool:
    return bool(jax.tree.leaves(tree))


@contextlib.contextmanager
def _disk(directory):
    """Errors of a full disk as InputError, wherever in the chain of causes they are."""
    try:
        yield
    except Exception as error:
        cause = error
        while cause is not None:
            if getattr(cause, 'errno', None) in FULL or any(t in str(cause) for t in _FULL_TEXTS):
                logging.error('%s', cause)
                raise InputError(
                    f'{directory}: the disk takes no more while a checkpoint is written. Earlier '
                    'checkpoints there are intact: free space (or lower config.keep) and run the '
                    'same command again to resume from the last one'
                ) from error
            cause = cause.__cause__ or cause.__context__
        raise


# ------------------------------------------------------- single arrays, for those who stream them


def find_step(directory: str | os.PathLike, step: int | None = None) -> int:
    """The step asked for, or the last one.

    Raises:
      InputError: there is none.
    """
    return _find(directory, step)[1]


def read_shapes(directory: str | os.PathLike, step: int, item: str = 'params') -> dict:
    """Shapes and dtypes of the arrays of an item, as a nested dict."""
    return _shapes(as_path(directory) / str(step) / item)


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
