"""Queued resources, played by a stand-in for gcloud: what is run, when it ends, what is deleted."""

import json
import os
from pathlib import Path
import shlex
import signal
import subprocess
import sys

import pytest

from launch import gcloud, queued
from tests.launch import fake_gcloud, shipped

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NAME, HOSTS = 'sft_v5p-16', 2
ACTIVE, WAITING = {'out': 'ACTIVE'}, {'out': 'WAITING_FOR_RESOURCES'}


def hosts(*states, words='step 7/9'):
    """What a look prints: (state, code) of each host; None: it does not answer."""
    lines = [
        f'{gcloud.REPORT} t1v-n-1-w-{i} {state[0]} {state[1]} {words}'
        for i, state in enumerate(states) if state is not None
    ]  # fmt: skip
    return {'out': '\n'.join(lines)}


RUNNING = hosts(('running', 0), ('running', 0))
DONE = hosts(('exited', 0), ('exited', 0))
SAVED = hosts(('exited', 75), ('exited', 75))


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """cloud(lives) prepares the stand-in; cloud.verbs() says what was called."""
    program = tmp_path / 'gcloud'
    program.write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -I -S {HERE}/fake_gcloud.py "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    monkeypatch.setenv('FAKE_GCLOUD', str(tmp_path))
    shipped.reset()
    return Cloud(tmp_path)


class Cloud:
    def __init__(self, folder):
        self.folder = folder

    def __call__(self, *lives):
        (self.folder / 'lives.json').write_text(json.dumps(lives))

    def calls(self):
        record = self.folder / 'calls.jsonl'
        return [json.loads(line) for line in record.read_text().splitlines()]

    def verbs(self):
        return [fake_gcloud.verb(call) for call in self.calls()]

    def run(self, *more):
        """In a process of its own: the stand-in sends signals to whoever called it."""
        command = [sys.executable, '-m', 'launch.queued', *shipped.queued_argv(NAME), '--look=0']
        return subprocess.run(
            [*command, *more], cwd=ROOT, capture_output=True, text=True, timeout=240
        )


def run(*more):
    return queued.run([*shipped.queued_argv(NAME), '--look=0', *more])


def test_it_waits_runs_watches_and_deletes(cloud, capsys):
    cloud({'state': [WAITING, WAITING, ACTIVE], 'look': [RUNNING, DONE]})
    assert run() == 0
    assert cloud.verbs() == [
        'state', 'create', 'state', 'state', 'state', 'start', 'look', 'look', 'delete',
    ]  # fmt: skip
    said = capsys.readouterr().err
    assert 'WAITING_FOR_RESOURCES' in said and 'step 7/9' in said


def test_after_75_it_runs_again_on_the_same_slice(cloud):
    cloud({'state': [ACTIVE], 'look': [RUNNING, SAVED, RUNNING, DONE]})
    assert run() == 0
    verbs = cloud.verbs()
    assert [verbs.count(v) for v in ('create', 'start', 'stop', 'delete')] == [1, 2, 1, 1]
    assert verbs[-1] == 'delete'


def test_one_host_that_saved_stops_the_others(cloud):
    cloud({'state': [ACTIVE], 'look': [hosts(('running', 0), ('exited', 137)), DONE]})
    assert run() == 0
    verbs = cloud.verbs()
    assert verbs[verbs.index('look') :][:2] == ['look', 'stop']
    assert verbs.count('start') == 2


def test_a_slice_that_is_taken_away_is_asked_for_again(cloud):
    first = {'state': [ACTIVE, {'out': 'SUSPENDED'}], 'look': [RUNNING, hosts(None, None)]}
    cloud(first, {'state': [WAITING, ACTIVE], 'look': [RUNNING, DONE]})
    assert run() == 0
    verbs = cloud.verbs()
    assert [verbs.count(v) for v in ('create', 'start', 'delete')] == [2, 2, 2]
    again = verbs.index('create', verbs.index('create') + 1)
    assert 'delete' in verbs[:again]


def test_a_slice_taken_away_before_it_was_there_is_asked_for_again(cloud):
    cloud({'state': [WAITING, {'out': 'SUSPENDING'}]}, {'state': [ACTIVE], 'look': [DONE]})
    assert run() == 0
    assert [cloud.verbs().count(v) for v in ('create', 'start', 'delete')] == [2, 1, 2]


def test_a_host_that_stays_silent_is_lost(cloud):
    silent = hosts(('running', 0), None)
    cloud(
        {'state': [ACTIVE], 'look': [RUNNING, silent, silent, RUNNING, silent, silent, silent]},
        {'state': [ACTIVE], 'look': [DONE]},
    )
    assert run() == 0
    assert cloud.verbs().count('look') == 7 + 1
    assert cloud.verbs().count('create') == 2


def test_nothing_is_given_up_while_this_machine_is_offline(cloud):
    offline = {'code': 1, 'err': 'Unable to find the server'}
    nobody = hosts(None, None)
    cloud({
        'state': [ACTIVE, *[offline] * 9, ACTIVE],
        'look': [RUNNING, *[{**nobody, **offline}] * 9, RUNNING, DONE],
    })  # fmt: skip
    assert run() == 0
    assert [cloud.verbs().count(v) for v in ('create', 'start', 'stop')] == [1, 1, 0]


@pytest.mark.parametrize('code', [1, 2, 3])
def test_a_run_that_failed_is_not_started_again(cloud, capsys, code):
    cloud({
        'state': [ACTIVE], 'look': [hosts(('running', 0), ('exited', code))],
        'logs': [{'out': 'config.steps: the reason'}],
    })  # fmt: skip
    assert run() == code
    verbs = cloud.verbs()
    assert verbs.count('start') == 1 and verbs[-1] == 'delete'
    (logs,) = (call for call in cloud.calls() if fake_gcloud.verb(call) == 'logs')
    assert 't1v-n-1-w-1' in logs[-1]
    said = capsys.readouterr().err
    assert 'config.steps: the reason' in said and f't1v-n-1-w-1: exit code {code}' in said


def test_an_image_that_no_host_can_start_is_a_failure_and_of_some_a_loss(cloud, capsys):
    missing = ('missing', 127)
    cloud({
        'state': [ACTIVE], 'start': [{'code': 1, 'err': 'manifest unknown'}],
        'look': [hosts(missing, missing)],
    })  # fmt: skip
    assert run() == 127
    assert 'manifest unknown' in capsys.readouterr().err
    assert cloud.verbs().count('start') == 1


def test_a_host_that_was_not_reached_is_lost(cloud):
    cloud(
        {'state': [ACTIVE], 'look': [hosts(('running', 0), ('missing', 127))]},
        {'state': [ACTIVE], 'look': [DONE]},
    )
    assert run() == 0
    assert cloud.verbs().count('create') == 2


def test_restarts_are_counted(cloud, capsys):
    cloud({'state': [ACTIVE], 'look': [SAVED]})
    assert run('--max_restarts=3') == 1
    assert cloud.verbs().count('start') == 1 + 3
    assert cloud.verbs()[-1] == 'delete'
    assert 'restarted 3 times' in capsys.readouterr().err


def test_a_name_that_is_taken_is_left_alone(cloud, capsys):
    cloud({'state': [ACTIVE]})
    (cloud.folder / 'memory.json').write_text('{"life": 0, "there": true}')
    assert run() == 2
    assert cloud.verbs() == ['state']
    assert 'there is such a queued resource (state ACTIVE)' in capsys.readouterr().err


def test_a_request_that_is_refused_is_bad_input(cloud, capsys):
    cloud({'create': [{'code': 1, 'err': 'ERROR: Quota limit exceeded'}]})
    assert run() == 2
    assert 'Quota limit exceeded' in capsys.readouterr().err
    assert cloud.verbs()[:2] == ['state', 'create'] and 'delete' in cloud.verbs()


def test_a_request_that_fails_while_it_waits_is_bad_input(cloud, capsys):
    cloud({'state': [WAITING, {'out': 'FAILED'}]})
    assert run() == 2
    assert 'look at quota and zone' in capsys.readouterr().err
    assert cloud.verbs()[-1] == 'delete'


def test_deleting_is_tried_until_it_is_done_and_said_if_it_is_not(cloud, capsys):
    broken = {'code': 1, 'err': 'backend error'}
    cloud({'state': [ACTIVE], 'look': [DONE], 'delete': [broken, broken, {}]})
    assert run() == 0
    assert cloud.verbs().count('delete') == 3
    shipped.reset()
    (cloud.folder / 'memory.json').unlink()
    cloud({'state': [ACTIVE], 'look': [DONE], 'delete': [broken]})
    assert run() == 1
    assert 'NOT DELETED' in capsys.readouterr().err


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_the_hosts_save_and_deletes(cloud, number):
    cloud({'state': [ACTIVE], 'look': [RUNNING, {**RUNNING, 'signal': number}, SAVED]})
    done = cloud.run()
    assert done.returncode == 75, done.stderr
    assert cloud.verbs()[-4:] == ['look', 'stop', 'look', 'delete']


def test_hosts_that_did_not_save_are_told_apart(cloud):
    killed = hosts(('exited', 75), ('exited', 137))
    cloud({'state': [ACTIVE], 'look': [{**RUNNING, 'signal': signal.SIGTERM}, killed]})
    done = cloud.run()
    assert done.returncode == 1
    assert 'not every host has saved' in done.stderr


def test_a_second_signal_deletes_at_once(cloud):
    number = signal.SIGINT
    cloud({
        'state': [ACTIVE], 'look': [{**RUNNING, 'signal': number}],
        'stop': [{'signal': number, 'pause': True}],
    })  # fmt: skip
    done = cloud.run()
    assert done.returncode == 1, done.stderr
    assert cloud.verbs()[-3:] == ['look', 'stop', 'delete']


def test_a_signal_while_the_slice_is_asked_for_does_not_leave_it_behind(cloud):
    cloud({'create': [{'signal': signal.SIGTERM, 'cut': 0.5}], 'state': [ACTIVE]})
    done = cloud.run()
    assert done.returncode == 75, done.stderr
    assert cloud.verbs() == ['state', 'create', 'delete']


def test_a_signal_while_it_is_deleted_does_not_stop_that(cloud):
    cloud({'state': [ACTIVE], 'look': [DONE], 'delete': [{'signal': signal.SIGTERM}]})
    done = cloud.run()
    assert done.returncode == 0, done.stderr
    assert cloud.verbs()[-1] == 'delete'


def test_without_gcloud_nothing_is_tried(cloud, monkeypatch, capsys):
    monkeypatch.setenv('PATH', '/nowhere')
    assert run() == 2
    assert 'gcloud is not on PATH' in capsys.readouterr().err
    assert run('--dry_run') == 0


def test_the_dry_run_is_what_is_run(cloud):
    cloud({'state': [WAITING, ACTIVE], 'look': [RUNNING, SAVED, DONE]})
    assert run() == 0
    script = shipped.GOLDEN / f'{NAME}.sh'
    real = {tuple(call) for call in cloud.calls()}
    printed = [shlex.split(line) for line in script.read_text().splitlines() if line[:1] == 'g']
    assert {tuple(words[1:]) for words in printed} == real
    before = len(cloud.calls())
    subprocess.run(['bash', script], check=True, capture_output=True)
    assert cloud.calls()[before:] == [words[1:] for words in printed]
