"""Processes of this machine as the hosts of a job: started together, watched, ended together."""

import asyncio
from collections.abc import Mapping
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys

from launch.command import say
from launch.injection import Injection
from launch.restart import spelled
from mossjax.exits import AGAIN, OK

# From the end of a host that did not save to the end of the others: they wait for it in vain, and
# only jax's heartbeat, minutes later, would tell them.
VAIN_S = 3
LONGEST_LINE = 2**20
_DEVICES = re.compile(r'--xla_force_host_platform_device_count=\S*')
# Of a pod that this machine may belong to; a process that sees them looks for other hosts.
_FOREIGN = ('MEGASCALE_', 'TPU_WORKER_', 'TPU_PROCESS_', 'JAX_COORDINATOR_')


class Hosts:
    """The processes of a job.

    Attributes:
      injections: those that were not due yet.
      stopping: the job was told to end, and will not be started again.
    """

    def __init__(
        self, command: list[str], count: int, devices: int = 1,
        injections: list[Injection] | None = None, grace_s: float = 60, sink=None,
    ):
        """
        Args:
          command: what every host runs.
          count: hosts. devices: virtual CPU devices of each.
          grace_s: from SIGTERM to SIGKILL, where hosts can save.
          sink: a binary file for what the hosts print; standard output if not given.
        """
        self.command, self.count, self.devices = command, count, devices
        self.injections = list(injections or [])
        self.grace_s, self.stopping = grace_s, False
        self._sink = sink or sys.stdout.buffer
        self._processes: list[subprocess.Popen] = []
        self._stop, self._attempts = None, 0

    async def attempt(self) -> tuple[list[int], list[int]]:
        """Starts all hosts and returns when none is left.

        Returns:
          (exit codes of all hosts, those of the hosts that ended by themselves); a signal is
          negative.
        """
        self._stop = self._stop or asyncio.Event()
        self._attempts += 1
        port = free_port()
        self._processes = []
        tasks = []
        try:
            printed = [await self._start(host, port) for host in range(self.count)]
            pumps = [asyncio.create_task(self._pump(*each)) for each in enumerate(printed)]
            timers = [asyncio.create_task(self._timer(i)) for i in self.injections]
            tasks = [*pumps, *timers]
            ends = [asyncio.create_task(self._end(host)) for host in range(self.count)]
            tasks += ends
            causes = await self._watch(ends)
            await self._end_rest(ends, causes)
            await asyncio.wait(pumps)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for host, process in enumerate(self._processes):
                self._send(host, signal.SIGKILL)
                process.wait()
        return [process.returncode for process in self._processes], causes

    def stop(self) -> None:
        """Tells the hosts to save and end; kills them when called again."""
        if self.stopping:
            for host in range(len(self._processes)):
                self._send(host, signal.SIGKILL)
        self.stopping = True
        if self._stop:
            self._stop.set()

    async def _start(self, host: int, port: int) -> asyncio.StreamReader:
        """Starts a host; what it prints can be read from what is returned."""
        # Not asyncio's subprocesses: those wait for whoever still holds the pipe, and may lose an
        # exit code to a signal that is sent at the same time.
        process = subprocess.Popen(
            [*_with_us(), *self.command],
            env=environment(
                os.environ, host, self.count, self.devices, port, self._attempts - 1
            ),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        self._processes.append(process)
        printed = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(printed), process.stdout
        )
        return printed

    async def _end(self, host: int) -> int:
        """Waits for a host; whatever it started ends with it, as in a container."""
        process, loop = self._processes[host], asyncio.get_running_loop()
        ended = loop.create_future()
        watched = os.pidfd_open(process.pid)
        loop.add_reader(watched, lambda: ended.done() or ended.set_result(None))
        try:
            await ended
        finally:
            loop.remove_reader(watched)
            os.close(watched)
        self._send(host, signal.SIGKILL)  # while its number is still its own
        return process.wait()

    async def _watch(self, ends: list[asyncio.Task]) -> list[int]:
        """Codes of the hosts that have ended once one did not end well, or all have."""
        stop = asyncio.create_task(self._stop.wait())
        try:
            waiting = {*ends, stop}
            while not self.stopping and waiting - {stop}:
                done, waiting = await asyncio.wait(
                    waiting, return_when=asyncio.FIRST_COMPLETED
                )
                if any(task.result() != OK for task in done - {stop}):
                    break
        finally:
            stop.cancel()
        return [task.result() for task in ends if task.done()]

    async def _end_rest(self, ends: list[asyncio.Task], causes: list[int]) -> None:
        left = [host for host, task in enumerate(ends) if not task.done()]
        if not left:
            return
        for host, task in enumerate(ends):
            if task.done() and task.result() != OK:
                say(f'host {host} ended: {spelled(task.result())}; ending the others')
        for host in left:
            self._send(host, signal.SIGTERM)
        can_save = all(code in (OK, AGAIN) for code in causes)
        _, late = await asyncio.wait(ends, timeout=self.grace_s if can_save else VAIN_S)
        for host, task in enumerate(ends):
            if task in late:
                self._send(host, signal.SIGKILL)
        await asyncio.wait(ends)

    async def _pump(self, host: int, printed: asyncio.StreamReader) -> None:
        """Prints what a host prints, line by line, and looks out for what injections wait for."""
        rest = b''
        while piece := await printed.read(65536):
            *lines, rest = (rest + piece).split(b'\n')
            if len(rest) > LONGEST_LINE:
                lines, rest = [*lines, rest], b''
            for line in lines:
                self._line(host, line)
        if rest:
            self._line(host, rest)

    def _line(self, host: int, line: bytes) -> None:
        self._sink.write(b'%d| %s\n' % (host, line))
        self._sink.flush()
        text = line.decode(errors='replace')
        for each in [each for each in self.injections if each.due(text)]:
            self._inject(each)

    async def _timer(self, each: Injection) -> None:
        if each.seconds is not None:
            await asyncio.sleep(each.seconds)
            self._inject(each)

    def _inject(self, each: Injection) -> None:
        self.injections.remove(each)
        say(f'injected: {each}')
        for host in range(self.count) if each.host is None else [each.host]:
            self._send(host, each.signal)

    def _send(self, host: int, number: int) -> None:
        """SIGKILL takes what the host has started along; other signals are for itself."""
        process = self._processes[host]
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if number == signal.SIGKILL else os.kill)(process.pid, number)


def environment(
    base: Mapping[str, str], host: int, count: int, devices: int, port: int, attempt: int
) -> dict[str, str]:
    """Variables of one host: which one it is, where the hosts meet, its virtual devices.

    LAUNCH_ATTEMPT, from 0, lets what stands in for training tell a restart from the start.
    """
    kept = {name: value for name, value in base.items() if not name.startswith(_FOREIGN)}
    flags = _DEVICES.sub('', kept.get('XLA_FLAGS', ''))
    flags = f'{flags} --xla_force_host_platform_device_count={devices}'
    return kept | {
        'JAX_PLATFORMS': 'cpu',
        'PYTHONUNBUFFERED': '1',  # into a pipe, lines would come late
        'XLA_FLAGS': ' '.join(flags.split()),
        'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
        'JAX_NUM_PROCESSES': str(count),
        'JAX_PROCESS_ID': str(host),
        'LAUNCH_ATTEMPT': str(attempt),
    }


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(('localhost', 0))
        return s.getsockname()[1]


def _with_us() -> list[str]:
    """Before a host's command: Linux ends it when its launcher ends, even by kill -9."""
    found = shutil.which('setpriv')  # of util-linux
    return [found, '--pdeathsig', 'KILL', '--'] if found else []
