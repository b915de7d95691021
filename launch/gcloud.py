"""The gcloud commands of a job on queued resources, as lists of words; nothing is run here.

On every machine of the slice the job is one container, started detached: it goes on while nobody
is connected, and what became of it is asked with `docker inspect`.
"""

import dataclasses
import shlex

from launch.job import Job

CONTAINER = 'mossjax'
# First word of the line in which a host says how its container is.
REPORT = 'mossjax-host'


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a job is queued.

    Attributes:
      service_account: its e-mail; None: the project's default one.
      valid_until: how long to wait for the slice, e.g. '6h'; None: for ever.
    """

    project: str
    zone: str
    service_account: str | None = None
    reserved: bool = False
    network: str | None = None
    subnetwork: str | None = None
    valid_until: str | None = None


def create(job: Job, place: Place) -> list[str]:
    """Asks for the slices."""
    nodes = ['--node-id', job.name]
    if job.slices > 1:
        nodes = ['--node-count', str(job.slices), '--node-prefix', job.name]
    return [
        *_resource('create', job, place),
        '--accelerator-type', job.slice.accelerator_type, '--runtime-version', job.slice.runtime,
        *nodes,
        *(['--spot'] if job.spot else []),
        *(['--reserved'] if place.reserved else []),
        *_given('--service-account', place.service_account),
        *_given('--network', place.network),
        *_given('--subnetwork', place.subnetwork),
        *_given('--valid-until-duration', place.valid_until),
    ]  # fmt: skip


def state(job: Job, place: Place) -> list[str]:
    """Prints the state of the request: ACTIVE once the machines are there."""
    return [*_resource('describe', job, place), '--format', 'value(state.state)']


def delete(job: Job, place: Place) -> list[str]:
    """Gives the slices back, whatever runs on them."""
    return [*_resource('delete', job, place), '--force', '--quiet']


def start(job: Job, place: Place) -> list[str]:
    """Pulls the image on every host and starts the run in it."""
    steps = ['set -e']
    registry = job.image.partition('/')[0]
    if registry.endswith(('.pkg.dev', '.gcr.io')) or registry == 'gcr.io':
        steps.append(
            'gcloud auth print-access-token | sudo docker login --username oauth2accesstoken '
            f'--password-stdin https://{registry} > /dev/null'
        )
    variables = [word for k, v in job.environment.items() for word in ('--env', f'{k}={v}')]
    run = [
        'sudo', 'docker', 'run', '--detach', '--name', CONTAINER, '--privileged',
        '--network', 'host', '--ulimit', 'memlock=-1', *variables, job.image, *job.train,
    ]  # fmt: skip
    steps += [
        f'sudo docker pull --quiet {shlex.quote(job.image)} > /dev/null',
        f'{{ sudo docker rm --force {CONTAINER} > /dev/null 2>&1 || true; }}',
        f'{shlex.join(run)} > /dev/null',
    ]
    return _everywhere(job, place, '; '.join(steps))


def look(job: Job, place: Place) -> list[str]:
    """Prints a line a host: REPORT, its name, the container's state, its code, its last words."""
    container = (
        "$(sudo docker inspect --format '{{.State.Status}} {{.State.ExitCode}}' "
        f'{CONTAINER} 2> /dev/null || echo missing 127)'
    )
    words = (
        f"$(sudo docker logs --tail 1 {CONTAINER} 2>&1 | tail -n 1 | tr -d '\\r' | cut -c 1-300)"
    )
    line = f'printf \'%s %s %s %s\\n\' {REPORT} "$(hostname)" "{container}" "{words}"'
    return _everywhere(job, place, line)


def stop(job: Job, place: Place) -> list[str]:
    """Tells every host to save and end; kills it after the grace period."""
    line = f'sudo docker stop -t {job.grace_s} {CONTAINER} > /dev/null 2>&1 || true'
    return _everywhere(job, place, line)


def logs(job: Job, place: Place, host: str, lines: int = 40) -> list[str]:
    """Prints the last lines of one host."""
    wanted = f'[ "$(hostname)" = {shlex.quote(host)} ]'
    tail = f'sudo docker logs --tail {lines} {CONTAINER} 2>&1'
    return _everywhere(job, place, f'if {wanted}; then {tail}; fi')


def script(job: Job, place: Place) -> str:
    """All of them as a user would type them, in order."""
    steps = [
        ('Ask for the slice.', create),
        ('Until it says ACTIVE.', state),
        ('Start the run on every host.', start),
        ('Until a host has ended. All with 0: done.', look),
        ('After any other end: the rest is told to save. After 75 or a lost host the run is\n'
         f'# started again, {job.max_restarts} times, on a new slice if this one is gone.', stop),
        ('In the end, however it comes.', delete),
    ]  # fmt: skip
    parts = [f'# {text}\n{shlex.join(build(job, place))}\n' for text, build in steps]
    return '#!/usr/bin/env bash\n' + '\n'.join(parts)


def _resource(verb: str, job: Job, place: Place) -> list[str]:
    return [
        'gcloud', 'compute', 'tpus', 'queued-resources', verb, job.name,
        '--project', place.project, '--zone', place.zone,
    ]  # fmt: skip


def _everywhere(job: Job, place: Place, line: str) -> list[str]:
    return [
        *_resource('ssh', job, place),
        '--node', 'all', '--worker', 'all', '--batch-size', 'all', '--quiet', '--command', line,
    ]  # fmt: skip


def _given(flag: str, value: str | None) -> list[str]:
    return [flag, value] if value else []
