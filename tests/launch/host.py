"""A stand-in for training: does what a plan says for its host and attempt, then ends.

    python -m tests.launch.host PLAN.json

The plan is a list of attempts, each a list of hosts, each a list of actions.
"""

import json
import os
from pathlib import Path
import signal
import subprocess
import sys


def main(plan: Path) -> None:
    host = int(os.environ['JAX_PROCESS_ID'])
    started = plan.with_suffix(f'.{host}')
    attempt = int(started.read_text()) if started.exists() else 0
    started.write_text(str(attempt + 1))
    for name, *arguments in json.loads(plan.read_text())[attempt][host]:
        ACTIONS[name](*arguments)


def on_term(code: int | None) -> None:
    """What SIGTERM does: ends with this code, or only says that it came."""

    def told(*_):
        print('told', flush=True)
        if code is not None:
            sys.exit(code)

    signal.signal(signal.SIGTERM, told)


def pause() -> None:
    while True:
        signal.pause()


def spawn() -> None:
    """Starts a process that holds the pipe of this one open and would outlive it."""
    child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])
    print(f'spawned {child.pid}', flush=True)


def hold(path: str) -> None:
    """Keeps a named pipe open for writing until this process is gone."""
    HELD.append(open(path, 'w'))


HELD = []
ACTIONS = {
    'say': lambda text: print(text, flush=True),
    'write': lambda text: (sys.stdout.write(text), sys.stdout.flush()),
    'exit': sys.exit,
    'kill': lambda number: os.kill(os.getpid(), number),
    'on_term': on_term,
    'pause': pause,
    'spawn': spawn,
    'hold': hold,
}


if __name__ == '__main__':
    signal.alarm(300)  # whatever goes wrong in a test, nothing stays behind
    main(Path(sys.argv[1]))
