"""Sides of a comparison: processes of their own that take turns at one piece of work.

A side prepares, runs once, says `ready`, and runs once for every line it reads; its answer is a
line of JSON, {name: seconds}. In turns, so that what else runs on the machine slows all of them.
`tests/torch_codec.py` and `tests/torch_qwen3.py` are sides in interpreters without this package.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import json
import os
from pathlib import Path
import statistics
import subprocess
import sys

ROOT = Path(__file__).parents[2]


class Side:
    """A process that runs one part whenever it is asked."""

    def __init__(self, command: list[str]):
        threads = {'OMP_NUM_THREADS': '2', 'MKL_NUM_THREADS': '2', 'JAX_PLATFORMS': 'cpu'}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **threads}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        if self._answer() != 'ready':
            sys.exit(f'{" ".join(command)} failed')

    def _answer(self) -> str:
        for line in self._process.stdout:
            if line.startswith(('{', 'ready')):
                return line.strip()
        return ''

    def run(self) -> dict[str, float]:
        """Seconds by name."""
        print(file=self._process.stdin, flush=True)
        return json.loads(self._answer())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def in_turns(commands: Sequence[list[str]], rounds: int) -> list[list[dict[str, float]]]:
    """For each round the answer of each side."""
    with contextlib.ExitStack() as stack:
        sides = []
        for command in commands:
            sides.append(Side(command))
            stack.callback(sides[-1].close)
        return [[side.run() for side in sides] for _ in range(rounds)]


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(x[name] for x in rounds), 4) for name in rounds[0]}


def answer(parts: Mapping[str, Callable]) -> None:
    """The side of a process: the part that its first argument names, given the others.

    Args:
      parts: name -> what prepares it and returns what runs it, () -> {name: seconds}.
    """
    run = parts[sys.argv[1]](*sys.argv[2:])
    run()
    print('ready', flush=True)
    for _ in sys.stdin:
        print(json.dumps(run()), flush=True)
