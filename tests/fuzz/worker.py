"""Reads damaged files one after another, under limits; a JSON line about each.

    python -m tests.fuzz.worker SEED FIRST COUNT

A case is a number: from SEED and it, everything else follows. One that takes this process down, or
hangs where no signal reaches it, is noticed by the process that reads the lines.
"""

import json
from pathlib import Path
import random
import resource
import shutil
import signal
import sys
import tempfile
import time

SECONDS = 20
MEMORY = 2 * 2**30  # bytes above what the process has once everything is imported


class TooLong(BaseException):
    """No `except Exception` of the code that is tested catches it."""


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob('*')}


def case(number: int, seed: str, seeds, originals, scratch: Path) -> dict:
    """Damages one file, reads it, and says what came of it."""
    from mossjax.errors import InputError
    from tests.fuzz.mutations import mutate

    rng = random.Random(f'{seed}:{number}')
    which = rng.choices(seeds, [s.weight for s in seeds])[0]
    folder = scratch / 'case'
    folder.mkdir()
    which.make(folder)
    file = folder / which.file
    data, same = mutate(file.read_bytes(), which.kind, rng)
    file.write_bytes(data)
    before, began = listing(folder), time.process_time()
    outcome, said = 'refused', ''
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of this process, however busy the machine is
    try:
        result = which.read(folder)
        signal.setitimer(signal.ITIMER_PROF, 0)
        right = which.right(folder, result) and (not same or result == originals[which.name])
        outcome = 'read' if right else 'WRONG'
    except InputError as error:
        said = str(error)
        if '\n' in said or not said or same:
            outcome = 'REFUSED THE SAME' if same else 'NOT ONE LINE'
    except BaseException as error:
        outcome, said = type(error).__name__, repr(error)
    signal.setitimer(signal.ITIMER_PROF, 0)
    left = [x for x in before ^ listing(folder) if not x.startswith(which.leaves or '\0')]
    if left:
        outcome, said = 'LEFT BEHIND', f'{left} {said}'
    seconds = round(time.process_time() - began, 2)
    shutil.rmtree(folder)
    return {
        'case': number, 'seed': which.name, 'outcome': outcome, 'same': same, 'said': said[:500],
        'seconds': seconds,
    }  # fmt: skip


def main(seed: str, first: int, count: int) -> None:
    import safetensors.numpy  # noqa: F401 (heavy imports come before the limits)
    import torch  # noqa: F401

    from tests.fuzz.seeds import SEEDS

    originals = {}
    with tempfile.TemporaryDirectory() as scratch:
        for each in SEEDS:
            folder = Path(scratch) / 'seed'
            folder.mkdir()
            each.make(folder)
            originals[each.name] = each.read(folder)
            assert each.right(folder, originals[each.name]), f'{each.name} as it is'
            shutil.rmtree(folder)

        def too_long(*_):
            raise TooLong

        signal.signal(signal.SIGPROF, too_long)
        pages = int(Path('/proc/self/statm').read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for number in range(first, first + count):
            print(json.dumps(case(number, seed, SEEDS, originals, Path(scratch))), flush=True)


if __name__ == '__main__':
    main(sys.argv[1], *map(int, sys.argv[2:4]))
