"""The hosts of a job count themselves before they join: jax names none that is missing.

Process 0 listens on the port that its coordinator will use next (a firewall lets that one through),
the others tell it their number and wait for its verdict.
"""

from collections.abc import Mapping
import contextlib
import socket
import time

from mossjax.errors import InputError
from mossjax.values import listed

WORD_S = 5  # for one line over an open connection
PORT = '8476'  # of the coordinator, where the environment does not say; jax's own choice


def known(environment: Mapping[str, str]) -> tuple[str, int, int] | None:
    """(address of the coordinator, hosts, our number), where the environment says all of it.

    As `launch.local` does by jax's variables, and Kubernetes on one slice by those of the TPU.
    """
    names = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
    if all(name in environment for name in names):
        address, *numbers = (environment[name] for name in names)
    elif 'TPU_WORKER_HOSTNAMES' in environment and 'MEGASCALE_NUM_SLICES' not in environment:
        hosts = environment['TPU_WORKER_HOSTNAMES'].split(',')
        port = environment.get('JAX_COORDINATOR_PORT', PORT)
        address, numbers = f'{hosts[0]}:{port}', [len(hosts), environment.get('TPU_WORKER_ID', '')]
    else:
        return None
    with contextlib.suppress(ValueError):
        count, index = map(int, numbers)
        return address, count, index
    return None


def roll_call(address: str, count: int, index: int, timeout_s: float) -> None:
    """Returns on all hosts once all have come.

    Args:
      address: HOST:PORT of host 0. count: hosts of the job. index: which of them we are.

    Raises:
      InputError: some have not come in time, by their numbers; one came twice, or was told of
        another number of hosts; the port is taken; host 0 cannot be reached.
    """
    if count < 2:
        return
    host, _, port = address.rpartition(':')
    end = time.monotonic() + timeout_s
    if index == 0:
        said = _gather(int(port), count, end, timeout_s)
    else:
        said = _report((host, int(port)), f'{index} {count}', end, timeout_s)
    if said:
        raise InputError(said)


def _gather(port: int, count: int, end: float, timeout_s: float) -> str:
    try:
        server = socket.create_server(('', port), backlog=count)
    except OSError as error:
        return (f'port {port}, where the hosts are to meet, cannot be opened ({error.strerror}): '
                'end what has it (a run that is still there?), or set JAX_COORDINATOR_PORT')
    came: set[int] = set()
    waiting: list[socket.socket] = []  # for the verdict
    fault = ''
    with server, contextlib.ExitStack() as stack:
        while len(came) < count - 1 and not fault and (left := end - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(OSError, ValueError):  # nobody, or none of ours
                other, _ = server.accept()
                stack.enter_context(other)
                other.settimeout(WORD_S)
                number, told = map(int, _line(other).split())
                waiting.append(other)
                if told != count:
                    fault = f'host {number} was told of {told} hosts, host 0 of {count}'
                elif number in came or not 0 < number < count:
                    fault = f'host {number} of {count} came twice, or is one too many'
                came.add(number)
        missing = sorted(set(range(1, count)) - came)
        if fault:
            fault += ': start the same job on all of its hosts, once on each'
        elif missing:
            fault = (f'of {count} hosts {listed(missing)} did not come within {timeout_s:g} s: '
                     'look whether they run, and whether the firewall lets hosts reach one another')
        for other in waiting:
            with contextlib.suppress(OSError):
                other.sendall(f'{fault}\n'.encode())
        for other in waiting:  # they close first, which leaves the port free
            with contextlib.suppress(OSError):
                other.recv(1)
    return fault


def _report(where: tuple[str, int], word: str, end: float, timeout_s: float) -> str:
    why = 'no answer'
    while (left := end + WORD_S - time.monotonic()) > 0:
        try:
            with socket.create_connection(where, min(left, WORD_S)) as there:
                there.settimeout(left)
                there.sendall(f'{word}\n'.encode())
                return _line(there)
        except OSError as error:  # not there yet, or it was started again
            why = error.strerror or str(error)
            time.sleep(0.2)
    return (f'host 0 at {where[0]}:{where[1]} was not reached within {timeout_s:g} s ({why}): look '
            'whether it runs, and whether the firewall lets hosts reach one another')


def _line(connection: socket.socket) -> str:
    """What the other side says; it must say something."""
    read = b''
    while not read.endswith(b'\n'):
        piece = connection.recv(4096)
        if not piece:
            raise ConnectionResetError('closed')
        read += piece
    return read.decode(errors='replace').strip()
