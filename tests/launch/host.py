"""A stand-in for training: does what a plan says for its host and attempt, then ends.

    python -m tests.launch.host PLAN.json

The plan is a list of attempts, each a list of hosts, each a list of actions.
"""

import json
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import time


def main(plan: Path) -> None:
    host = int(os.environ['JAX_PROCESS_ID'])
    attempt = int(os.environ['LAUNCH_ATTEMPT'])
    for name, *arguments in json.loads(plan.read_text())[attempt][host]:
        ACTIONS[name](*arguments)


def say(text: str) -> None:
    """In one call to the system: a signal that comes in between must not tear a line."""
    os.write(sys.stdout.fileno(), text.encode())


def on_term(code: int | None) -> None:
    """What SIGTERM does: ends with this code, or only says that it came."""

    def told(*_):
        say('told\n')
        if code is not None:
            sys.exit(code)

    signal.signal(signal.SIGTERM, told)


def pause() -> None:
    """Waits for signals. Each leaves a byte, so that one just before the wait is not missed."""
    while True:
        os.read(WAKE, 1)


def meet() -> None:
    """Returns when all hosts have come as far as this."""
    name, _, port = os.environ['JAX_COORDINATOR_ADDRESS'].partition(':')
    others = int(os.environ['JAX_NUM_PROCESSES']) - 1
    if os.environ['JAX_PROCESS_ID'] == '0':
        with socket.create_server((name, int(port))) as server:
            came = [server.accept()[0] for _ in range(others)]
        for each in came:
            with each:  # left open, it is described as it goes, and a signal in that time is lost
                each.sendall(b'.')
    else:
        while True:
            try:
                with socket.create_connection((name, int(port))) as there:
                    if there.recv(1):
                        return
            except ConnectionError:  # not there yet
                time.sleep(0.01)


def spawn() -> None:
    """Starts a process that holds the pipe of this one open and would outlive it."""
    child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])
    say(f'spawned {child.pid}\n')


def hold(path: str) -> None:
    """Keeps a named pipe open for writing until this process is gone."""
    HELD.append(open(path, 'w'))


HELD = []
WAKE, woken = os.pipe()
os.set_blocking(woken, False)
signal.set_wakeup_fd(woken)
ACTIONS = {
    'say': lambda text: say(f'{text}\n'),
    'write': say,
    'exit': sys.exit,
    'kill': lambda number: os.kill(os.getpid(), number),
    'meet': meet,
    'on_term': on_term,
    'pause': pause,
    'spawn': spawn,
    'hold': hold,
}


if __name__ == '__main__':
    signal.alarm(300)  # whatever goes wrong in a test, nothing stays behind
    main(Path(sys.argv[1]))
