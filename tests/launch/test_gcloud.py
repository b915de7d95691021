"""The shell of the hosts: read by shellcheck, and run against stand-ins for docker and sudo."""

import json
import os
from pathlib import Path
import subprocess
import sys
import sysconfig

import pytest

from launch import gcloud, queued
from launch.gcloud import Place
from launch.job import Job
from launch.slices import SLICES
from tests.launch import shipped

WORDS = ('mossjax', 'train', "--config.a=it's $HOME `x` $(y)", '--config.b=two  spaces\nlines; "q"')
JOB = Job('a-job', SLICES['v6e-256'], 2, 'us-docker.pkg.dev/p/m/m:1', WORDS, False, 30, 77)
PLACE = Place('project', 'zone')
LINES = {
    build.__name__: build(JOB, PLACE)[-1] for build in (gcloud.start, gcloud.look, gcloud.stop)
} | {'logs': gcloud.logs(JOB, PLACE, "a'host")[-1]}


def shellcheck(text, *flags):
    program = Path(sysconfig.get_path('scripts')) / 'shellcheck'
    return subprocess.run(
        [program, '--shell=bash', *flags, '-'], input=text, capture_output=True, text=True
    )


@pytest.mark.parametrize('name', shipped.SHIPPED)
def test_scripts_pass_shellcheck(name):
    text = (shipped.GOLDEN / f'{name}.sh').read_text()
    # SC2016: what stands between single quotes is meant for the shell of the hosts.
    done = shellcheck(text, '--exclude=SC2016')
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize('name', LINES)
def test_lines_for_the_hosts_pass_shellcheck(name):
    # SC2016: the run's own arguments, which are to stay as they are.
    done = shellcheck(LINES[name], '--exclude=SC2016')
    assert done.returncode == 0, done.stdout


def test_shellcheck_would_notice():
    assert 'SC2086' in shellcheck('rm $1\n').stdout


PROGRAM = """#!{python} -IS
import json, os, sys
folder = {folder!r}
name = os.path.basename(sys.argv[0])
with open(folder + '/calls', 'a') as record:
    record.write(json.dumps([name, *sys.argv[1:]]) + '\\n')
if name == 'sudo':
    os.execvp(sys.argv[1], sys.argv[1:])
answer = json.load(open(folder + '/answers')).get(' '.join([name, *sys.argv[1:2]]), ['', 0])
sys.stdout.write(answer[0])
sys.exit(answer[1])
"""


@pytest.fixture
def host(tmp_path):
    """host(line, answers) runs a line as ssh does; returns what was printed and docker's calls."""
    for name in ('sudo', 'docker', 'gcloud', 'hostname'):
        program = tmp_path / name
        program.write_text(PROGRAM.format(python=sys.executable, folder=str(tmp_path)))
        program.chmod(0o755)

    def run(line, answers, code=0):
        (tmp_path / 'answers').write_text(json.dumps({'hostname': ['w-3\n', 0], **answers}))
        (tmp_path / 'calls').write_text('')
        # gcloud divides the line at blanks, and ssh joins it again.
        line = ' '.join(line.split(' '))
        done = subprocess.run(
            ['bash', '-c', line], capture_output=True, text=True,
            env={**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}'},
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        calls = [json.loads(each) for each in (tmp_path / 'calls').read_text().splitlines()]
        return done.stdout, [words[1:] for words in calls if words[0] == 'docker']

    return run


def test_a_start_gives_the_container_the_very_words(host):
    _, calls = host(LINES['start'], {'gcloud auth': ['token', 0], 'docker rm': ['', 1]})
    assert [words[0] for words in calls] == ['login', 'pull', 'rm', 'run']
    assert calls[0][-1] == 'https://us-docker.pkg.dev'
    ran = calls[-1]
    at = ran.index(JOB.image)
    assert tuple(ran[at + 1 :]) == WORDS
    variables = [ran[i + 1] for i, word in enumerate(ran[:at]) if word == '--env']
    assert dict(each.split('=', 1) for each in variables) == JOB.environment
    assert len(JOB.environment) == 2


@pytest.mark.parametrize('step', ['login', 'pull'])
def test_a_start_ends_at_the_first_step_that_fails(host, step):
    _, calls = host(LINES['start'], {f'docker {step}': ['', 5]}, code=5)
    assert calls[-1][0] == step


def test_a_look_tells_state_code_and_last_words(host):
    answers = {'docker inspect': ['exited 75\n', 0], 'docker logs': ['one\nstep 3/9 \x41\r\n', 0]}
    printed, calls = host(LINES['look'], answers)
    (seen,) = queued.parse(f'Using ssh batch size of 64.\n{printed}')
    assert (seen.name, seen.state, seen.code) == ('w-3', 'exited', 75)
    assert seen.words == 'step 3/9 A' and seen.ended
    assert [words[0] for words in calls] == ['inspect', 'logs']


def test_a_look_at_a_host_without_the_container(host):
    printed, _ = host(LINES['look'], {'docker inspect': ['', 1], 'docker logs': ['', 1]})
    (seen,) = queued.parse(printed)
    assert (seen.state, seen.code, seen.words) == ('missing', 127, '') and seen.ended


def test_a_container_that_is_about_to_start_has_not_ended():
    fresh, broken = queued.parse('mossjax-host a created 0\nmossjax-host b created 127\n')
    assert not fresh.ended and broken.ended


def test_a_stop_gives_the_grace_period_and_forgives_what_is_gone(host):
    _, calls = host(LINES['stop'], {'docker stop': ['', 1]})
    assert calls == [['stop', '-t', '77', 'mossjax']]


def test_logs_are_printed_by_the_host_that_is_meant(host):
    answers = {'docker logs': ['said\n', 0]}
    assert host(LINES['logs'], answers) == ('', [])
    printed, calls = host(gcloud.logs(JOB, PLACE, 'w-3', 7)[-1], answers)
    assert printed == 'said\n' and calls == [['logs', '--tail', '7', 'mossjax']]
