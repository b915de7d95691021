"""One function a question about this machine; each returns `Finding`s and changes nothing.

Every check takes what it looks at as an argument with the real thing as default, so that a broken
machine can be described instead of being at hand.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys

from mossjax.files import available_memory
from mossjax.parallel.chips import GIB
from mossjax.plan import platforms

GOOD, NOTE, BAD = 'ok', 'note', 'FAIL'
# The processes of a pod meet on this port of the first host: the launchers tell jax so, since Cloud
# TPU's own firewall rule opens it between the machines of a slice, but not 8482, jax's default.
COORDINATOR_PORT = 8476
# Left by a job that was preempted, they make the next one wait for slices that are gone.
STALE = 'MEGASCALE_'


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
      state: GOOD, NOTE (works, but know this) or BAD.
      name: what was looked at. found: what was there.
      remedy: what it means and how to mend it; '' where nothing is to be done.
    """

    state: str
    name: str
    found: str
    remedy: str = ''


def python(version: Sequence[int] = sys.version_info) -> list[Finding]:
    found = '.'.join(map(str, version[:3]))
    if (3, 11) <= tuple(version[:2]) <= (3, 12):
        return [Finding(GOOD, 'Python', found)]
    return [Finding(BAD, 'Python', found, 'mossjax runs on 3.11 and 3.12: make a virtual '
                    'environment with one of them and install there')]  # fmt: skip


def packages(
    requirements: Sequence[str] | None = None,
    installed: Callable[[str], str] = importlib.metadata.version,
) -> list[Finding]:
    """Required packages against the ranges of setup.py: jax and flax move as a pair."""
    from packaging.requirements import Requirement

    if requirements is None:
        try:
            requirements = importlib.metadata.requires('mossjax') or []
        except importlib.metadata.PackageNotFoundError:
            return [Finding(BAD, 'mossjax', 'not installed, only imported from this folder',
                            'pip install -e .')]  # fmt: skip
    faults, shown = [], []
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({'extra': ''}):
            continue
        try:
            version = installed(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            faults.append(Finding(BAD, requirement.name, 'missing',
                                  f"pip install '{requirement}'"))  # fmt: skip
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            faults.append(Finding(
                BAD, requirement.name, version,
                'outside the range that works together; install the pinned set again: '
                f"pip install '{requirement.name}{requirement.specifier}'",
            ))
        elif requirement.name in ('jax', 'flax', 'orbax-checkpoint', 'optax', 'grain'):
            shown.append(f'{requirement.name} {version}')
    return faults or [Finding(GOOD, 'packages', ', '.join(shown))]


def extras(find: Callable[[str], bool] | None = None) -> list[Finding]:
    """Parts that some commands need and others do not."""
    import importlib.util

    find = find or (lambda name: importlib.util.find_spec(name) is not None)
    return [
        Finding(GOOD if find(module) else NOTE, name, 'installed' if find(module) else 'missing',
                '' if find(module) else f"{why}; pip install 'mossjax[{extra}]'")
        for module, name, extra, why in (
            ('pocketsphinx', 'judge', 'eval', 'mossjax demo needs it'),
            ('matplotlib', 'pictures', 'eval', 'without it the demo draws none'),
            ('av', 'more audio', 'audio', 'm4a, aac, webm and damaged recordings need it'),
            ('gcsfs', 'buckets', 'gcs', 'gs:// needs it'),
        )
    ]  # fmt: skip


PROBE = """
import json, jax
devices = jax.local_devices()
stats = devices[0].memory_stats() or {}
print(json.dumps({
    'platform': devices[0].platform, 'kind': devices[0].device_kind, 'count': len(devices),
    'memory': stats.get('bytes_limit'), 'processes': jax.process_count(),
}))
"""


def devices(
    run: Callable | None = None, seconds: int = 120, environment: Mapping[str, str] = os.environ
) -> list[Finding]:
    """What jax finds, asked in a process of its own: a stuck accelerator must not hang us."""
    run = run or (lambda: subprocess.run(
        [sys.executable, '-c', PROBE], capture_output=True, text=True, timeout=seconds
    ))
    try:
        done = run()
    except subprocess.TimeoutExpired:
        return [Finding(BAD, 'devices', f'no answer in {seconds} s', 'another process holds the '
                        'accelerator (end it), or a pod waits for its other hosts (start them all)'
                        )]  # fmt: skip
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        asked = environment.get('JAX_PLATFORMS', '')
        if asked not in ('', 'cpu'):
            return [Finding(BAD, 'devices', f'none for JAX_PLATFORMS={asked}',
                            platforms.remedy(asked))]  # fmt: skip
        said = (done.stderr.strip().splitlines() or ['no message'])[-1]
        return [Finding(BAD, 'devices', said[:200], 'jax cannot start: jax, jaxlib and libtpu must '
                        "be of one release; pip install 'mossjax[tpu]' on a TPU host, 'mossjax' "
                        'elsewhere, and restart the runtime')]  # fmt: skip
    found = json.loads(lines[-1])
    memory = f', {found["memory"] / GIB:.1f} GiB each' if found['memory'] else ''
    what = f'{found["count"]} x {found["kind"]}{memory}'
    findings = [Finding(GOOD, 'devices', what)]
    if found['platform'] == 'cpu':
        findings = [Finding(NOTE, 'devices', what, 'no accelerator: the nano model runs, the 9.1 B '
                            'model does not; on a TPU host install mossjax[tpu] and set no '
                            'JAX_PLATFORMS')]  # fmt: skip
    elif found['memory'] and found['memory'] < 20 * GIB:
        findings.append(Finding(NOTE, '9.1 B model', 'does not fit in bfloat16', 'use --int8'))
    return findings


def memory(meminfo: str | None = None) -> list[Finding]:
    """Memory of the host that is free now."""
    available = available_memory(meminfo)
    if available is None:
        return [Finding(NOTE, 'host memory', f'unknown on {platform.system()}')]
    free = available / GIB
    if free < 4:
        return [Finding(BAD, 'host memory', f'{free:.1f} GiB free', 'converting needs 4, the demo '
                        '2: end other programs')]  # fmt: skip
    return [Finding(GOOD, 'host memory', f'{free:.1f} GiB free')]


def disk(where: str = '.', usage: Callable = shutil.disk_usage) -> list[Finding]:
    """Room where you stand."""
    name = f'disk at {os.path.abspath(where)}'
    try:
        free = usage(where).free / 1e9
    except OSError as error:
        return [Finding(BAD, name, str(error), 'name a folder that is there')]
    if free < 3:
        return [Finding(BAD, name, f'{free:.1f} GB free', 'too little even for the environment of '
                        'the tests (3.5 GB): free space or work elsewhere')]  # fmt: skip
    if free < 40:
        return [Finding(NOTE, name, f'{free:.1f} GB free', 'the 9.1 B weights are 18 GB, and '
                        'converting them takes as much again')]  # fmt: skip
    return [Finding(GOOD, name, f'{free:.1f} GB free')]


def hosts(environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """How many hosts this job thinks it has."""
    names = [n for n in environment.get('TPU_WORKER_HOSTNAMES', '').split(',') if n]
    findings = [Finding(GOOD, 'hosts', f'{max(1, len(names))}')]
    if len(names) > 1:
        findings = [Finding(NOTE, 'hosts', f'{len(names)}: {", ".join(names[:4])}', 'run the same '
                            'command on every one of them, with --pod')]  # fmt: skip
    stale = sorted(name for name in environment if name.startswith(STALE))
    if stale:
        findings.append(Finding(BAD, 'environment', ', '.join(stale), 'of a multi-slice job; left '
                                'by an earlier one they make jax wait for ever. Unset them unless '
                                'this is such a job'))  # fmt: skip
    return findings


def ports(port: int = COORDINATOR_PORT) -> list[Finding]:
    """Whether the port on which hosts meet can be used here."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(('', port))
        except OSError as error:
            return [Finding(BAD, f'port {port}', str(error), 'an earlier run still holds it: end '
                            'that process (ss -ltnp shows it)')]  # fmt: skip
    return [Finding(GOOD, f'port {port}', 'free', 'between hosts a firewall may still close it: '
                    f'allow tcp:{port} inside the network of the pod')]  # fmt: skip


CHECKS = (python, packages, extras, devices, memory, disk, hosts, ports)


def report(findings: Sequence[Finding]) -> str:
    """One line a finding, remedies under it."""
    width = max(len(f.name) for f in findings)
    lines = []
    for f in findings:
        lines.append(f'{f.state:5}{f.name:{width + 2}}{f.found}')
        if f.remedy and f.state != GOOD:
            lines.append(f'{"":5}{"":{width + 2}}-> {f.remedy}')
    return '\n'.join(lines)
