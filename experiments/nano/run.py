"""The nano recipe from nothing: the paper in miniature, on two CPU cores.

    python -m experiments.nano.run --workdir runs/nano

Recordings are rendered; a text model, a speech tokenizer, a vocoder, a speaker encoder and a
decoder are trained; the language model goes through the paper's three stages; everything is
measured. Every stage is a process of its own, two of them run at a time where
they do not need each other, and each goes on where it was stopped: run the same command again. Logs
are in WORKDIR/logs.

`--effort 4` trains four times as many steps with the same configurations. Stages that are done stay
as they are; `--again sft --effort 2` makes one anew, longer, and with it what was made from it. The
shipped checkpoint was made that way (its report says how long each stage ran, and which went on
for some steps with other weights: `then`).
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import fcntl
import json
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time

from absl import flags, logging

from experiments.nano import clock, stages, voice_stages
from experiments.nano.script import start
from mossjax.errors import InputError
from mossjax.files import replacing

AT_ONCE = 2  # processes


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of the recipe.

    Attributes:
      run: (workdir, effort) -> facts for the report; in a process of its own.
      needs: stages that must be finished before.
      makes: what it would go on from when it is run again, relative to the working directory.
    """

    run: Callable[[Path, float], dict]
    needs: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()


# Of what can start, the first does: the language model's chain decides how long the recipe takes;
# beside it the codec learns to speak.
STAGES = {
    'recordings': Stage(stages.recordings, makes=('recordings',)),
    'tokenizer': Stage(stages.tokenizer, ('recordings',), ('tokenizer',)),
    'text_lm': Stage(stages.text_lm, makes=('text_lm', 'rows/text', 'rows/repeat')),
    'codes': Stage(
        stages.codes, ('tokenizer',),
        tuple(f'{name}.jsonl*' for name in ('codes', 'heldout', 'never_spoken')),
    ),
    'rows': Stage(
        stages.rows, ('codes', 'text_lm'), tuple(f'rows/{name}' for name in stages.SPEECH_ROWS)
    ),
    'stage1': Stage(stages.stage1, ('rows',), ('stage1',)),
    'stage2': Stage(stages.stage2, ('stage1',), ('stage2',)),
    'sft': Stage(stages.sft, ('stage2',), ('sft',)),
    'speaker': Stage(voice_stages.speaker, ('recordings',), ('speaker',)),
    'vocoder_mel': Stage(
        voice_stages.vocoder_mel, ('recordings',), ('vocoder_mel', 'vocoder.jsonl', 'f0.jsonl')
    ),
    'vocoder': Stage(voice_stages.vocoder, ('vocoder_mel',), ('vocoder',)),
    'doubles': Stage(voice_stages.doubles, ('codes',), ('doubles*',)),
    'decoder': Stage(
        voice_stages.decoder, ('doubles', 'speaker'), ('decoder_mu', 'decoder', 'vectors.jsonl')
    ),
    'report': Stage(stages.report, ('sft', 'vocoder', 'decoder')),
}


def done(workdir: Path, name: str) -> Path:
    """The file that says a stage is finished, and what it found."""
    return workdir / 'done' / f'{name}.json'


def forget(workdir: Path, name: str) -> set[str]:
    """Removes what a stage left, and what was made from it; returns the stages to run again."""
    forgotten = {name}
    while more := {n for n, s in STAGES.items() if forgotten & set(s.needs)} - forgotten:
        forgotten |= more
    for each in forgotten:
        done(workdir, each).unlink(missing_ok=True)
        clock.file(workdir, each).unlink(missing_ok=True)
        for path in [path for made in STAGES[each].makes for path in workdir.glob(made)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return forgotten


def run_stage(workdir: Path, name: str, effort: float) -> None:
    """Runs one stage here and records that it is finished.

    Raises:
      InputError: another process is at it.
    """
    _log(workdir, name).parent.mkdir(parents=True, exist_ok=True)
    lock = open(_log(workdir, name).with_suffix('.lock'), 'w')  # held until this process ends
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise InputError(
            f'stage {name} of {workdir} is run by another process; end it or wait for it'
        ) from None
    spans = clock.file(workdir, name)
    with clock.at_work(spans):
        facts = STAGES[name].run(workdir, effort)
    seconds = clock.worked(clock.spans_of(spans))
    facts |= {'seconds': round(seconds, 1), 'effort': effort}
    done(workdir, name).parent.mkdir(parents=True, exist_ok=True)
    with replacing(done(workdir, name)) as temporary:
        temporary.write_text(json.dumps(facts, indent=1) + '\n')


def run_all(workdir: Path, effort: float) -> None:
    """Runs what is not finished, at most AT_ONCE stages at a time.

    Raises:
      InputError: a stage failed; names its log.
    """
    finished = {name for name in STAGES if done(workdir, name).exists()}
    running: dict[str, subprocess.Popen] = {}
    free, held = shares(AT_ONCE), {}
    try:
        while len(finished) < len(STAGES):
            for name, stage in STAGES.items():
                ready = name not in finished | set(running) and set(stage.needs) <= finished
                if ready and free:
                    held[name] = free.pop()
                    running[name] = _spawn(workdir, name, effort, held[name])
            name = _wait(running)
            process = running.pop(name)
            free.append(held.pop(name))
            if process.returncode or not done(workdir, name).exists():
                raise InputError(
                    f'stage {name} ended with code {process.returncode}; see '
                    f'{_log(workdir, name)}, then run the same command again to go on'
                )
            finished.add(name)
            seconds = json.loads(done(workdir, name).read_text())['seconds']
            logging.info('%s finished in %.0f s (%d of %d)', name, seconds, len(finished),
                         len(STAGES))  # fmt: skip
    finally:
        for process in running.values():  # a stage saves its state on SIGTERM
            process.send_signal(signal.SIGTERM)
        for process in running.values():
            process.wait()


def shares(count: int) -> list[set[int]]:
    """The cores of this machine in `count` parts, the same core in several where they are few.

    Two trainings that share cores wait for each other's threads: each of their steps takes many
    times as long as on cores of its own.
    """
    cores = sorted(os.sched_getaffinity(0))
    return [set(cores[i::count] or cores) for i in range(count)]


def _log(workdir: Path, name: str) -> Path:
    return workdir / 'logs' / f'{name}.log'


def _spawn(workdir: Path, name: str, effort: float, cores: set[int]) -> subprocess.Popen:
    logging.info('%s starts; log: %s', name, _log(workdir, name))
    _log(workdir, name).parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, '-m', 'experiments.nano.run', f'--workdir={workdir}',
               f'--effort={effort}', f'--stage={name}']  # fmt: skip
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # what it begins with; nothing of ours works meanwhile
    try:
        with _log(workdir, name).open('a') as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    finally:
        os.sched_setaffinity(0, ours)


def _wait(running: dict[str, subprocess.Popen]) -> str:
    """The name of the next process that ends."""
    while True:
        for name, process in running.items():
            if process.poll() is not None:
                return name
        time.sleep(0.5)


def _stop(signum: int, frame) -> None:
    """Ends this process as Ctrl-C does, so that no stage goes on without it."""
    del frame
    sys.exit(128 + signum)


def main() -> None:
    logging.set_verbosity(logging.INFO)
    workdir = Path(flags.FLAGS.workdir).resolve()
    for name in (flags.FLAGS.stage, flags.FLAGS.again):
        if name and name not in STAGES:
            raise InputError(f'no stage {name!r}; one of {", ".join(STAGES)}')
    if flags.FLAGS.again:
        logging.info('made anew: %s', ', '.join(sorted(forget(workdir, flags.FLAGS.again))))
    if flags.FLAGS.stage:
        run_stage(workdir, flags.FLAGS.stage, flags.FLAGS.effort)
    else:
        signal.signal(signal.SIGTERM, _stop)
        run_all(workdir, flags.FLAGS.effort)


if __name__ == '__main__':
    flags.DEFINE_string('workdir', None, 'directory for everything the recipe makes', required=True)
    flags.DEFINE_float('effort', 1.0, 'training steps, relative to the configurations')
    flags.DEFINE_string('again', '', 'make this stage anew, and what was made from it')
    flags.DEFINE_string('stage', '', 'run this stage alone, here')
    start(main)
