"""The numbered folders of a checkpoint directory: which are whole, and what the others lack.

Copies stop half way, disks fill up, folders are renamed by hand. A step is whole if everything that
its meta item names is there in full length; the files themselves say so in a few small reads. What
is not whole is passed over and said, never deleted and never taken for a fresh start.
"""

from collections.abc import Sequence
import functools
import os
import re

from absl import logging
from etils import epath

from mossjax import paths, values
from mossjax.errors import InputError

CHECKPOINTS = 'checkpoints'  # the folder of the steps in the workdir of a run
META = 'meta'
TREES = ('params', 'opt_state', 'extra')
ASIDE = 'torn-'  # before the number of a folder that a run has moved out of its way
_NUMBER = re.compile(r'0|[1-9][0-9]*')
_WRITING = '.orbax-checkpoint-tmp'


def as_path(directory: str | os.PathLike) -> epath.Path:
    """A directory on a disk, made absolute (Orbax wants it), or in a bucket ('gs://...').

    Raises:
      InputError: its name is no UTF-8, which the libraries that store arrays take alone.
    """
    text = os.fspath(directory)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(
            f'{paths.printable(text)}: checkpoints need a path in UTF-8; rename the folder'
        ) from None
    return epath.Path(text if '://' in text else os.path.abspath(text))


def numbers(directory: epath.Path) -> list[int]:
    """Steps that have a folder, whole or not, ascending."""
    return sorted(int(p.name) for p in _entries(directory) if _is_step(p))


def newest(directory: str | os.PathLike, items: Sequence[str] = TREES) -> int | None:
    """The last whole step, None if there is no step at all; later ones that are torn are said.

    Args:
      items: which a step must have, beside its meta.

    Raises:
      InputError: there are steps, and none is whole.
    """
    directory = as_path(directory)
    torn = {}
    for step in reversed(numbers(directory)):
        torn[step] = fault(directory, step, items)
        if torn[step] is None:
            for later, why in list(torn.items())[:-1]:
                _warn_once(
                    f'{shown(directory)}: step {later} is incomplete ({why}): taking step {step}, '
                    f'the last complete one. Copy the folder {later} again if you have it elsewhere'
                )
            return step
    for name in _like_steps(directory):
        _warn_once(f'{shown(directory)}: {name!r} is ignored; the folder of a step is a number')
    if not torn:
        return None
    each = '; '.join(f'step {step} ({why})' for step, why in list(torn.items())[:5])
    raise InputError(
        f'{shown(directory)}: no checkpoint there is complete: {each}. Copy them again, whole; to '
        'start over, move them away or name another directory'
    )


def find(
    directory: str | os.PathLike, step: int | None = None, items: Sequence[str] = TREES
) -> int:
    """The step asked for, or the last whole one.

    Raises:
      InputError: there is none, or it is not whole.
    """
    directory = as_path(directory)
    found = newest(directory, items) if step is None else step
    there = numbers(directory)
    if found is None or found not in there:
        near = _like_steps(directory)
        names = f'; a folder of a step is named by its number, not {near[0]!r}' if near else ''
        raise InputError(
            f'{shown(directory)} holds {f"steps {there}" if there else "no checkpoint"}'
            + ('' if step is None else f', not step {step}')
            + f'; give the directory that holds the numbered steps (WORKDIR/checkpoints){names}'
        )
    why = None if step is None else fault(directory, step, items)
    if why:
        raise InputError(
            f'{shown(directory)}: step {step} is incomplete ({why}); copy its folder again, whole, '
            'or take another step'
        )
    return found


def fault(directory: epath.Path, step: int, items: Sequence[str] = TREES) -> str | None:
    """What a step lacks, None if it is whole; arrays are not read."""
    folder = directory / str(step)
    try:
        meta = read_meta(directory, step)
        for item in items:
            if item not in meta.get('empty', ()):
                _check_item(folder, item)
    except InputError as error:
        return str(error)
    return None


def read_meta(directory: epath.Path, step: int) -> dict:
    """The JSON item of a step.

    Raises:
      InputError: it is not there, it is that of another step, or no list of trees is in it.
    """
    name = f'{META}/metadata'
    meta = _json(directory / str(step) / name, name)
    if meta.get('step') != step:
        raise InputError(f'{name} is of step {values.shown(meta.get("step"))}')
    if not isinstance(empty := meta.get('empty', []), list):
        raise InputError(f'{name} says that {values.shown(empty)} is empty')
    return meta


def set_aside(directory: epath.Path) -> None:
    """Renames the torn steps after the last whole one, so that a run can write these anew.

    Any number of processes may do it at once.

    Raises:
      InputError: no step is whole, or a folder cannot be renamed.
    """
    whole = newest(directory)
    for step in numbers(directory):
        if whole is None or step <= whole:
            continue
        free = (f'{ASIDE}{step}{more}' for more in ['', *(f'-{i}' for i in range(2, 100))])
        target = next(directory / name for name in free if not (directory / name).exists())
        try:
            (directory / str(step)).rename(target)
        except FileNotFoundError:  # another process has done it
            continue
        except OSError as error:
            raise InputError(
                f'{shown(directory)}: the incomplete step {step} cannot be renamed '
                f'({paths.reason(error)}); move it away'
            ) from error
        logging.warning('%s: the incomplete step %d is now %s', directory, step, target.name)


def remove_unfinished(directory: epath.Path) -> None:
    """Removes what writers that died have left; it never was a step."""
    for path in _entries(directory):
        if _WRITING in path.name and path.is_dir():
            path.rmtree(missing_ok=True)


def shown(directory: epath.Path) -> str:
    return paths.printable(directory)


def _entries(directory: epath.Path) -> list[epath.Path]:
    try:
        if directory.is_dir():
            return list(directory.iterdir())
        if directory.exists():
            raise InputError(f'{shown(directory)} is a file; a folder of checkpoints is due there')
        return []
    except OSError as error:
        raise InputError(f'{shown(directory)} cannot be read: {paths.reason(error)}') from error


def _is_step(path: epath.Path) -> bool:
    return bool(_NUMBER.fullmatch(path.name)) and path.is_dir()


def _like_steps(directory: epath.Path) -> list[str]:
    """Names that may have been meant as steps: '100 (copy)', a file '100'."""
    return sorted(
        p.name for p in _entries(directory)
        if re.match(r'(step[-_ ]?)?\d', p.name) and not _is_step(p) and _WRITING not in p.name
    )


@functools.cache
def _warn_once(message: str) -> None:
    logging.warning('%s', message)


def _json(path: epath.Path, name: str) -> dict:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        raise InputError(f'{name} is {"unreadable" if path.exists() else "missing"}') from None
    if not text.strip('\0 \n'):
        raise InputError(f'{name} is empty')
    content = values.parse_json(text, name, '')
    if not isinstance(content, dict):
        raise InputError(f'{name} is no JSON object')
    return content


def _check_item(folder: epath.Path, item: str) -> None:
    if not (folder / item).is_dir():
        raise InputError(f'{item} is missing')
    tree = _json(folder / item / '_METADATA', f'{item}/_METADATA')
    beside = [folder / item / '_sharding', *(folder / item).glob('array_metadatas/process_*')]
    for path in beside:  # not needed, but read where they are
        if path.exists():
            _json(path, f'{item}/{path.relative_to(folder / item)}')
    if tree.get('use_ocdbt', True):
        _check_database(folder, item)
        return
    for entry in tree.get('tree_metadata', {}).values():
        array = '.'.join(key['key'] for key in entry['key_metadata'])
        _json(folder / item / array / '.zarray', f'{item}/{array}/.zarray')


def _check_database(folder: epath.Path, item: str) -> None:
    """Every file that the database of an item points to is there, as long as it must be."""
    ends = {}
    for location in _locations(folder / item, f'{item}/manifest.ocdbt'):
        _, base, name, start, length = location.rsplit(':', 4)
        end = int(start) + int(length)
        ends[base + name] = max(end, ends.get(base + name, 0))
    for name, end in ends.items():
        path = folder / item / name
        size = path.stat().length if path.exists() else None
        if size is None or size < end:
            has = 'is missing' if size is None else f'has {size} of {end} bytes'
            raise InputError(f'{item}/{name} {has}')


def _locations(item: epath.Path, name: str) -> list[str]:
    """'kind:base:file:start:length' of every node and value of an OCDBT database."""
    import tensorstore as ts

    place = f'{os.fspath(item)}/'
    spec = place if '://' in place else {'driver': 'file', 'path': place}
    if not (item / 'manifest.ocdbt').exists():
        raise InputError(f'{name} is missing')
    try:
        store = ts.KvStore.open(spec).result()
        version = ts.ocdbt.dump(store).result()['versions'][-1]
        nodes, found = [version['root']['location']], []
        while nodes:
            found.append(nodes.pop())
            for entry in ts.ocdbt.dump(store, found[-1]).result()['entries']:
                if 'location' in entry:
                    nodes.append(entry['location'])
                elif 'indirect_value' in entry:
                    found.append(entry['indirect_value'])
    except (ValueError, KeyError, IndexError, OSError) as error:
        said = str(error).split(' [')[0].replace(place, '')
        raise InputError(f'{name} or a node of it is damaged: {said}') from error
    return found
