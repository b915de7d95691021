"""`mossjax train --prove_resume N`: does a run that is killed end with the bits of one that is not?

N steps are trained at once, then N / 2, kill -9, and the rest, each in a process of its own (on a
pod: on every host). Compared are the rows that each step was given and all bits of the state in the
end, as each process holds them.

    python -m mossjax.cli.prove PART N FLAGS      what those processes run
"""

import functools
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

from mossjax import paths, steps
from mossjax.errors import InputError
from mossjax.exits import OK, WENT_WRONG

WHOLE, KILLED, RESUMED = 'whole', 'killed', 'resumed'
FOLDERS = {WHOLE: 'whole', KILLED: 'parts', RESUMED: 'parts'}
ROWS, STATE = 'rows', 'state'


def prove(argv: list[str], count: int, workdir: str) -> int:
    """Runs the three parts and compares; returns the exit code.

    Args:
      argv: of `mossjax train`. count: N. workdir: gets the folders whole/ and parts/.

    Raises:
      InputError: count is odd or too small, or the workdir is in use or in a bucket.
    """
    root = _check(count, workdir)
    for part in (WHOLE, KILLED, RESUMED):
        print(f'--prove_resume {count}: {part}', flush=True)
        command = [sys.executable, '-m', 'mossjax.cli.prove', part, str(count), *argv]
        code = subprocess.run(command).returncode
        if code != (-signal.SIGKILL if part == KILLED else OK):
            print(f'--prove_resume {count}: {part} ended with {code}', file=sys.stderr)
            return code if code > 0 else WENT_WRONG
    found = differences(root)
    for line in found[:20]:
        print(line, file=sys.stderr)
    print(f'--prove_resume {count}: ' + (
        f'{len(found)} differences' if found else
        f'rows and state are the same bits, killed after step {count // 2} or not'
    ))  # fmt: skip
    return WENT_WRONG if found else OK


def _check(count: int, workdir: str) -> pathlib.Path:
    if count < 4 or count % 2:
        raise InputError(f'--prove_resume {count}: give an even number of steps, 4 or more')
    root = paths.local(workdir, '--workdir')
    if root.is_dir() and any(root.iterdir()):
        raise InputError(f'--workdir {root} is not empty; --prove_resume wants a fresh one')
    return root


def differences(root: pathlib.Path) -> list[str]:
    """What differs between the run in whole/ and the one in parts/, in words."""
    found = []
    whole, parts = root / FOLDERS[WHOLE], root / FOLDERS[RESUMED]
    names = sorted(path.name for path in whole.glob(f'{STATE}-*.json'))
    if not names:
        return [f'{whole}: no state was recorded']
    for name in names:
        old, new = (json.loads((folder / name).read_text()) for folder in (whole, parts))
        found += [f'{name}: {key} differs' for key in sorted(old.keys() | new.keys())
                  if old.get(key) != new.get(key)]  # fmt: skip
        rows = name.replace(STATE, ROWS, 1) + 'l'
        old, new = (_read_rows(folder / rows) for folder in (whole, parts))
        found += [
            f'{rows}: step {step + 1} was given other rows' for step in sorted(old)
            if old[step] != new.get(step)
        ]  # fmt: skip
    return found


def _read_rows(path: pathlib.Path) -> dict[int, set]:
    """Step -> everything that was read for it: one thing, if reading it again gave the same."""
    found: dict[int, set] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        found.setdefault(entry['step'], set()).add((entry['sha256'], tuple(entry['names'])))
    return found


class Watched:
    """A task that writes down what it gives each step, and may end the process.

    Attributes:
      file: gets a line for each batch. steps: what is read ahead beyond them is not written down.
      saved: a folder; the process kills itself once it is there, one step later. None: never.
    """

    def __init__(self, task, file: pathlib.Path, count: int, saved: pathlib.Path | None):
        self._task, self._about = task, (file, count, saved)

    def __getattr__(self, name):
        return getattr(self._task, name)

    def at(self, step: int, rows: int) -> 'Watched':
        return Watched(self._task.at(step, rows), *self._about)

    def batch(self, step, rows=None):
        file, count, saved = self._about
        if saved and step > count // 2:  # asked for ahead, by a thread that may wait
            while steps.newest(saved) != count // 2:
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        batch = self._task.batch(step, rows)
        if step < count:
            digest = hashlib.sha256()
            for name in sorted(batch):
                digest.update(f'{name}{batch[name].shape}'.encode() + batch[name].tobytes())
            names = self._task.names(step) if hasattr(self._task, 'names') else []
            entry = {'step': step, 'sha256': digest.hexdigest(), 'names': list(names)}
            with open(file, 'a') as lines:  # one write: threads do not get into each other's lines
                lines.write(json.dumps(entry) + '\n')
        return batch


def state_digests(items: dict) -> dict[str, str]:
    """'path [index of a piece]' -> sha256 of its bits, of what this process holds of a state."""
    import jax
    import numpy as np

    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(items):
        for shard in leaf.addressable_shards:
            bits = np.asarray(shard.data)
            where = ','.join(f'{s.start or 0}:{s.stop or ""}' for s in shard.index)
            name = f'{jax.tree_util.keystr(path)} [{where}]'
            found[name] = hashlib.sha256(bits.tobytes()).hexdigest()
    return found


def main(part: str, count: int, argv: list[str]) -> int:
    """One part of the proof, in a process of its own."""
    from mossjax.cli import main as cli
    from mossjax.cli import train

    def fit(config, workdir: str) -> None:
        import jax

        from mossjax.train import loop, tasks

        config.steps, config.save_every, config.log_every = count, count // 2, 1
        config.keep, config.held_out_every = 2, 0
        folder = pathlib.Path(workdir) / FOLDERS[part]
        folder.mkdir(parents=True, exist_ok=True)
        run = tasks.make(config, fresh=part != RESUMED)
        me = f'{jax.process_index()}.json'
        saved = folder / steps.CHECKPOINTS if part == KILLED else None
        task = Watched(run.task, folder / f'{ROWS}-{me}l', count, saved)
        state = loop.fit(task, run.config, folder, init_from=run.init_from)
        found = state_digests(state.items())
        (folder / f'{STATE}-{me}').write_text(json.dumps(found, indent=1))

    command = types.SimpleNamespace(FLAGS=train.FLAGS, main=functools.partial(train.main, fit=fit))
    return cli.run_command(command, 'train', [*argv, '--prove_resume=0'])


if __name__ == '__main__':
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
