"""runs a job on this machine as if it were a pod: N processes as hosts, restarted by the same rule.

  python -m launch.local [--hosts N] [--devices N] [--kill WHEN:HOST] [--term WHEN:HOST] -- COMMAND

Starts COMMAND once for each host, each with its own virtual CPU devices and with what
`mossjax train --pod` needs to find the others in its environment, and prints their lines with the
host's number in front. When a host ends with 75 (saved) or by a signal, the others are told to stop
and all are started again; when one ends with 1, 2 or 3 the job has failed (launch/restart.py).

--kill and --term send SIGKILL or SIGTERM on purpose, each once: to a host or to `all`, at a step
that the log reports (7:1), some seconds after the start (7s:1), or when a host prints a text
(@saving:1). Ctrl-C tells the hosts to save and ends the job; twice, and it kills them.

Exit codes: 0 done, 2 bad input, 3 the run went wrong, 75 stopped and saved, 1 anything else.

Examples:
  python -m launch.local --hosts 4 -- mossjax train --pod --config my_config.py --workdir runs/four
  python -m launch.local --hosts 2 --devices 4 --kill 20:1 --term 50:0 -- \\
      mossjax train --pod --config my_config.py --workdir runs/killed
"""

import asyncio
import shutil
import signal
import sys
import threading

from absl import flags

from launch import command, injection
from launch.command import say
from launch.hosts import Hosts
from launch.injection import Injection
from launch.restart import MAX_RESTARTS, UNCAUGHT, Decision, decision, exit_code, spelled
from launch.shell import ENDING
from mossjax.errors import InputError
from mossjax.exits import AGAIN, OK

FLAGS = flags.FlagValues()
_HOSTS = flags.DEFINE_integer(
    'hosts', 2, 'Processes, each of them a host.', lower_bound=1, flag_values=FLAGS
)
_DEVICES = flags.DEFINE_integer(
    'devices', 1, 'Virtual CPU devices of a host.', lower_bound=1, flag_values=FLAGS
)
_KILL = flags.DEFINE_multi_string(
    'kill', [], 'SIGKILL, WHEN:HOST; may be given several times.', flag_values=FLAGS
)
_TERM = flags.DEFINE_multi_string(
    'term', [], 'SIGTERM, WHEN:HOST; may be given several times.', flag_values=FLAGS
)
_RESTARTS = flags.DEFINE_integer(
    'max_restarts', MAX_RESTARTS, 'Restarts after which the job has failed.', lower_bound=0,
    flag_values=FLAGS,
)
_GRACE = flags.DEFINE_float(
    'grace', 60, 'Seconds a host that is told to stop has to save.', lower_bound=0,
    flag_values=FLAGS,
)


def main(arguments: list[str], overrides: list[str]) -> int:
    if overrides:
        raise InputError(f'{overrides[0]} belongs to the command: give it after --')
    if not arguments:
        raise InputError('no command; give it after --, e.g. -- mossjax train --pod ...')
    if shutil.which(arguments[0]) is None:
        raise InputError(f'{arguments[0]}: no such command; is its environment active?')
    count = _HOSTS.value
    injections = [injection.parse(given, signal.SIGKILL, count) for given in _KILL.value]
    injections += [injection.parse(given, signal.SIGTERM, count) for given in _TERM.value]
    hosts = Hosts(arguments, count, _DEVICES.value, injections, _GRACE.value)
    code, _ = run_job(hosts, _RESTARTS.value)
    return code


def run_job(hosts: Hosts, max_restarts: int = MAX_RESTARTS) -> tuple[int, list[list[int]]]:
    """Runs a job until it is done, has failed, or is told to stop.

    Returns:
      (what a launcher exits with, the exit codes of all hosts in each attempt; signals negative).
    """
    return asyncio.run(_run_job(hosts, max_restarts))


async def _run_job(hosts: Hosts, max_restarts: int) -> tuple[int, list[list[int]]]:
    if threading.current_thread() is threading.main_thread():  # elsewhere none can be caught
        for number in ENDING:
            asyncio.get_running_loop().add_signal_handler(number, hosts.stop)
    attempts = []
    for _ in range(max_restarts + 1):
        codes, causes = await hosts.attempt()
        attempts.append(codes)
        say(f'hosts ended: {", ".join(map(spelled, codes))}')
        if hosts.stopping:
            saved = set(codes) <= {OK, AGAIN}
            return exit_code(codes) if saved else UNCAUGHT, attempts
        if decision(causes) is not Decision.AGAIN:
            _tell_unused(hosts.injections)
            return exit_code(causes), attempts
    say(f'failed: restarted {max_restarts} times')
    return UNCAUGHT, attempts


def _tell_unused(injections: list[Injection]) -> None:
    for each in injections:
        say(f'never due: {each}')


def run(argv: list[str]) -> int:
    return command.run('launch.local', __doc__, FLAGS, main, argv)


if __name__ == '__main__':
    sys.exit(run(sys.argv[1:]))
