"""A stand-in for gcloud: plays the lives of queued resources that a file tells, and keeps a record.

FAKE_GCLOUD names a folder. `lives.json` there is a list of slices, one for each successful create:
{verb: [answers]}, where the last answer stands for all later ones. `calls.jsonl` gets the words of
each call. Answers are {"out", "err", "code", "signal", "pause", "cut"}: `signal` is sent to the
caller before anything is printed, `pause` never returns, and after `cut` seconds in which the
caller sent no SIGTERM in return the call goes on.
"""

import json
import os
from pathlib import Path
import signal
import sys


def verb(words: list[str]) -> str:
    """'create', 'state', 'delete', and what is run on the hosts."""
    named = words[3]
    if named != 'ssh':
        return {'describe': 'state'}.get(named, named)
    line = words[words.index('--command') + 1]
    marks = {'docker run': 'start', 'docker inspect': 'look', 'docker stop': 'stop'}
    return next((name for mark, name in marks.items() if mark in line), 'logs')


def main(words: list[str]) -> int:
    folder = Path(os.environ['FAKE_GCLOUD'])
    with (folder / 'calls.jsonl').open('a') as record:
        record.write(json.dumps(words) + '\n')
    lives = json.loads((folder / 'lives.json').read_text())
    memory = folder / 'memory.json'
    past = json.loads(memory.read_text()) if memory.exists() else {'life': -1, 'there': False}
    name = verb(words)
    life = past['life'] + (name == 'create')
    known = lives[life] if life >= 0 else {}
    answers = known.get(name) or [{}]
    count = past.setdefault(f'{life}.{name}', 0)
    past[f'{life}.{name}'] = count + 1
    answer = answers[min(count, len(answers) - 1)]
    if name == 'state' and not past['there']:
        answer = {'code': 1, 'err': 'ERROR: (gcloud) NOT_FOUND: Resource was not found'}
    if answer.get('code', 0) == 0:
        past['there'] = past['there'] and name != 'delete' or name == 'create'
        past['life'] = life
    memory.write_text(json.dumps(past))
    if 'cut' in answer:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if 'signal' in answer:
        os.kill(os.getppid(), answer['signal'])
    if 'cut' in answer and signal.sigtimedwait({signal.SIGTERM}, answer['cut']):
        with (folder / 'calls.jsonl').open('a') as record:
            record.write('["-", "-", "-", "cut"]\n')
    if 'pause' in answer:
        signal.pause()
    print(answer.get('out', ''))
    print(answer.get('err', ''), file=sys.stderr)
    return answer.get('code', 0)


if __name__ == '__main__':
    signal.alarm(300)  # whatever goes wrong in a test, nothing stays behind
    sys.exit(main(sys.argv[1:]))
