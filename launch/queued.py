"""trains on TPU machines of the Cloud TPU API: asks for a slice, runs on it, gives it back.

  python -m launch.queued --project P --zone Z --slice SLICE --image IMAGE --config FILE.py
      --workdir gs://DIR [--init_from gs://DIR] [--config.KEY=VALUE ...] [--dry_run]

Queues for the slice (a queued resource named --name), starts the image on all its hosts, watches,
starts the run again when a host ends with 75 (saved), by a signal, or is gone, on a new slice if
this one was taken away, and deletes the slice in the end: when the run is done, has failed, or this
program is told to stop. Ctrl-C (SIGTERM, SIGHUP) first tells the hosts to save; twice, and it
deletes at once. Only `kill -9`, or this machine ending, leaves the slice behind: the hosts train on
then, and --dry_run shows the command that deletes them.

Needs the gcloud command, logged in. --dry_run prints the commands as they would be run.

Exit codes: 0 done, 2 bad input, 3 the run went wrong, 75 stopped and saved, 1 anything else.

Example:
  python -m launch.queued --project $PROJECT --zone us-east5-a --slice v5p-128 --image $IMAGE \\
      --config experiments/moss_9b/stage1.py:v5p-128 --workdir gs://$BUCKET/stage1 \\
      --init_from gs://$BUCKET/Qwen3-8B \\
      --service_account mossjax@$PROJECT.iam.gserviceaccount.com \\
      --config.data.rows.interleaved=gs://$BUCKET/rows/interleaved
"""

import dataclasses
import shutil
import sys
import time

from absl import flags

from launch import command, gcloud, job
from launch.command import say
from launch.gcloud import Place
from launch.job import Job
from launch.restart import LOST, NOT_FOUND, UNCAUGHT, Decision, decision, exit_code, spelled
from launch.shell import Done, Shell, Stopped
from mossjax.errors import InputError
from mossjax.exits import AGAIN, OK

FLAGS = flags.FlagValues()
_PROJECT = flags.DEFINE_string(
    'project', None, 'Google Cloud project.', required=True, flag_values=FLAGS
)
_ZONE = flags.DEFINE_string(
    'zone', None, 'Zone of the slice, e.g. us-east5-a.', required=True, flag_values=FLAGS
)
job.define(FLAGS)
_ACCOUNT = flags.DEFINE_string(
    'service_account', None, 'E-mail of the account the hosts act as; the default one otherwise.',
    flag_values=FLAGS,
)
_RESERVED = flags.DEFINE_bool('reserved', False, 'Use a reservation.', flag_values=FLAGS)
_NETWORK = flags.DEFINE_string('network', None, 'Network of the hosts.', flag_values=FLAGS)
_SUBNETWORK = flags.DEFINE_string('subnetwork', None, 'Subnetwork of the hosts.', flag_values=FLAGS)
_VALID = flags.DEFINE_string(
    'valid_until', None, 'Give up if the slice is not there after e.g. 6h.', flag_values=FLAGS
)
_LOOK = flags.DEFINE_float(
    'look', 30, 'Seconds from one look at the hosts to the next.', lower_bound=0, flag_values=FLAGS
)
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the commands, run none.', flag_values=FLAGS)

# Looks in a row without an answer after which a host, or the request itself, is given up.
SILENT_LOOKS = 3
DELETIONS = 10
# Commands that last longer hang.
SHORT_S, START_S, DELETE_S = 300, 3600, 1800
ABSENT, ACTIVE, REFUSED = 'absent', 'ACTIVE', 'FAILED'
TAKEN = ('SUSPENDING', 'SUSPENDED', 'DELETING')


def main(arguments: list[str], overrides: list[str]) -> int:
    job_ = job.from_flags(FLAGS, arguments, overrides)
    place = Place(
        _PROJECT.value, _ZONE.value, _ACCOUNT.value, _RESERVED.value, _NETWORK.value,
        _SUBNETWORK.value, _VALID.value,
    )
    if _DRY_RUN.value:
        print(gcloud.script(job_, place), end='')
        return OK
    if shutil.which('gcloud') is None:
        raise InputError('the command gcloud is not on PATH; install the Google Cloud CLI')
    with Shell() as shell:
        return Supervisor(job_, place, shell, _LOOK.value).run()


@dataclasses.dataclass(frozen=True)
class Host:
    """What `gcloud.look` printed of one host.

    Attributes:
      state: docker's word for the container; 'missing' if there is none.
      words: the last line the run printed there.
    """

    name: str
    state: str
    code: int
    words: str

    @property
    def ended(self) -> bool:
        return self.state in ('exited', 'dead', 'missing') or self.state == 'created' and self.code


def parse(printed: str) -> list[Host]:
    """The hosts that answered, by name."""
    found = []
    for line in printed.splitlines():
        word, *rest = line.split(maxsplit=4)[:5] or ['']
        if word == gcloud.REPORT and len(rest) >= 3 and rest[2].isdigit():
            found.append(Host(rest[0], rest[1], int(rest[2]), ' '.join(rest[3:])))
    return sorted(found, key=lambda host: (len(host.name), host.name))


@dataclasses.dataclass
class Supervisor:
    """One job from the request to the deletion of its slices."""

    job: Job
    place: Place
    shell: Shell
    look_s: float
    running: bool = False

    def run(self) -> int:
        """Exit code of this program.

        Raises:
          InputError: the slice cannot be had.
        """
        if (state := self._state()) != ABSENT:
            raise InputError(
                f'--name {self.job.name}: there is such a queued resource (state {state}); '
                'take another name, or delete it: see --dry_run'
                if state else 'Google Cloud does not answer as it should; see above'
            )  # fmt: skip
        code = UNCAUGHT
        try:
            code = self._attempts()
        except Stopped:
            code = self._stopped()
        finally:
            if not self._delete():
                code = UNCAUGHT
        return code

    def _attempts(self) -> int:
        there = False
        for restarts in range(self.job.max_restarts + 1):
            there = there or self._get(first=restarts == 0)
            codes = self._attempt() if there else [LOST]
            if decision(codes) is not Decision.AGAIN:
                return exit_code(codes)
            say(f'again: {", ".join(sorted({spelled(c) for c in codes if c != OK}))}')
            there = LOST not in codes and self._state() == ACTIVE
            if not there and restarts < self.job.max_restarts:
                self._delete()
        say(f'failed: restarted {self.job.max_restarts} times')
        return UNCAUGHT

    def _get(self, first: bool) -> bool:
        """Asks for the slices and waits for them; False if they were taken away meanwhile.

        Raises:
          InputError: the request was refused.
        """
        made = self.shell.run(gcloud.create(self.job, self.place), DELETE_S, protected=True)
        if made.code:
            if first:
                raise InputError(f'the slice cannot be asked for: {_end_of(made)}')
            say(_end_of(made))
            self.shell.wait(self.look_s)
            return False
        said, silent = None, 0
        while (state := self._state()) != ACTIVE:
            if state == REFUSED:
                raise InputError(
                    f'{self.job.name}: the request for {self.job.slice.name} was refused, or was '
                    'not met in time; look at quota and zone'
                )
            if state in TAKEN:
                return False
            silent = silent + 1 if state in (None, ABSENT) else 0
            if silent > DELETIONS:
                raise InputError(f'{self.job.name}: the request is gone; somebody deleted it')
            if state != said:
                say(f'{self.job.name}: {state or "no answer"}')
                said = state
            self.shell.wait(self.look_s)
        return True

    def _attempt(self) -> list[int | None]:
        """Runs the job once; the codes of the hosts that ended by themselves."""
        hosts = self.job.slice.hosts * self.job.slices
        say(f'{self.job.name}: starting on {hosts} hosts')
        self.running = True
        started = self.shell.run(gcloud.start(self.job, self.place), START_S)
        if started.code:
            say(_end_of(started))
        silent, said = 0, ''
        while True:
            seen = self._look()
            ended = {host.name: host.code for host in seen if host.ended}
            silent = self._silence(silent, missing=hosts > len(seen))
            gone = hosts - len(seen) if silent >= SILENT_LOOKS else 0
            absent = [host.name for host in seen if host.state == 'missing']
            if len(absent) < hosts:  # of some hosts only: these were not reached
                ended |= dict.fromkeys(absent, LOST)
            codes = [*ended.values(), *[LOST] * gone]
            if any(code != OK for code in codes):
                self._tell(ended, gone)
                self.shell.run(gcloud.stop(self.job, self.place), self.job.grace_s + SHORT_S)
                self.running = False
                return codes
            if len(ended) == hosts:
                self.running = False
                return codes
            if seen and seen[0].words != said:
                said = seen[0].words
                say(f'{seen[0].name}: {said}')
            self.shell.wait(self.look_s)

    def _look(self) -> list[Host]:
        return parse(self.shell.run(gcloud.look(self.job, self.place), SHORT_S).out)

    def _silence(self, silent: int, missing: bool) -> int:
        """How many looks in a row a host did not answer while Google Cloud itself did."""
        if not missing or (state := self._state()) is None:
            return 0
        return silent + 1 if state == ACTIVE else SILENT_LOOKS

    def _tell(self, ended: dict[str, int | None], gone: int) -> None:
        """Says how hosts ended, and what the first that failed had to say."""
        for name, code in ended.items():
            if code != OK:
                say(f'{name}: {spelled(code)}')
        if gone:
            say(f'{gone} hosts are gone')
        failed = [n for n, code in ended.items() if decision([code]) is Decision.FAILED]
        if failed and ended[failed[0]] != NOT_FOUND:
            command_ = gcloud.logs(self.job, self.place, failed[0])
            say(self.shell.run(command_, SHORT_S).out)

    def _stopped(self) -> int:
        """Lets the hosts save, unless a second signal says not to."""
        if not self.running:
            return AGAIN
        say(f'stopping: the hosts have {self.job.grace_s} s to save; once more to delete at once')
        try:
            self.shell.run(gcloud.stop(self.job, self.place), self.job.grace_s + SHORT_S)
            seen = self._look()
        except Stopped:
            return UNCAUGHT
        codes = {host.code if host.ended else LOST for host in seen}
        if seen and codes <= {OK, AGAIN}:
            return exit_code(codes)
        say('not every host has saved; the run goes on from an earlier step')
        return UNCAUGHT

    def _delete(self) -> bool:
        """Gives the slices back, however long it takes; False, and says so, if they stay."""
        say(f'deleting {self.job.name}')
        words = gcloud.delete(self.job, self.place)
        for _ in range(DELETIONS):
            done = self.shell.run(words, DELETE_S, protected=True)
            if done.code == 0 or self._state(protected=True) == ABSENT:
                return True
            say(_end_of(done))
            time.sleep(self.look_s)
        say(f'NOT DELETED, and it costs money: {" ".join(words)}')
        return False

    def _state(self, protected: bool = False) -> str | None:
        """Of the request; ABSENT if there is none, None if there was no answer."""
        done = self.shell.run(gcloud.state(self.job, self.place), SHORT_S, protected)
        if done.code == 0:
            return done.out.strip() or None
        if 'NOT_FOUND' in done.err:
            return ABSENT
        say(_end_of(done))
        return None


def _end_of(done: Done) -> str:
    lines = (done.err.strip() or done.out.strip()).splitlines()
    return '\n'.join(lines[-5:]) or f'exit code {done.code}'


def run(argv: list[str]) -> int:
    return command.run('launch.queued', __doc__, FLAGS, main, argv)


if __name__ == '__main__':
    sys.exit(run(sys.argv[1:]))
