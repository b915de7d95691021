"""Local jobs of stand-in hosts: restarts, injected signals, and nobody left behind."""

import contextlib
import io
import json
import os
from pathlib import Path
import select
import signal
import subprocess
import sys

import pytest

from launch import hosts as hosts_lib
from launch import injection, local
from launch.hosts import Hosts, environment

ROOT = Path(__file__).parents[2]
DONE = [['exit', 0]]
# A host in the middle of training: says a step, and goes on until it is told to stop.
STEP = [['meet'], ['say', 'I step 7/9 loss=1'], ['pause']]
TRAINING = [['on_term', 75], *STEP]
DEAF = [['on_term', None], *STEP]


@pytest.fixture
def job(tmp_path, monkeypatch):
    """job(*attempts, kill=[...], term=[...]) runs hosts that do as told; each attempt a list."""
    monkeypatch.setattr(hosts_lib, 'VAIN_S', 240)  # whatever else this machine has to do

    def run(*attempts, kill=(), term=(), max_restarts=5, grace_s=240):
        count = len(attempts[0])
        injections = [injection.parse(each, signal.SIGKILL, count) for each in kill]
        injections += [injection.parse(each, signal.SIGTERM, count) for each in term]
        out = io.BytesIO()
        many = Hosts(plan(tmp_path, attempts), count, 1, injections, grace_s, out)
        code, codes = local.run_job(many, max_restarts)
        return code, codes, out.getvalue().decode()

    return run


def plan(folder, attempts):
    """The command of hosts that do as told."""
    path = folder / 'plan.json'
    path.write_text(json.dumps(attempts))
    return [sys.executable, str(ROOT / 'tests' / 'launch' / 'host.py'), str(path)]


def test_a_job_that_is_done_runs_once(job):
    code, codes, out = job([[['say', 'hello']], DONE, DONE])
    assert (code, codes, out) == (0, [[0, 0, 0]], '0| hello\n')


def test_a_killed_host_restarts_all(job):
    code, codes, out = job([TRAINING] * 3, [DONE] * 3, kill=['7:1'])
    assert (code, codes) == (0, [[75, -9, 75], [0, 0, 0]])
    assert '| I step 7/9 loss=1\n' in out  # of one host at least: its step was the sign
    assert '0| told\n' in out and '2| told\n' in out and '1| told\n' not in out


def test_a_host_told_to_stop_saves_and_so_do_the_others(job):
    code, codes, _ = job([TRAINING] * 3, [DONE] * 3, term=['7:2'])
    assert (code, codes) == (0, [[75, 75, 75], [0, 0, 0]])


def test_signals_to_all_hosts(job):
    assert job([TRAINING] * 2, [DONE] * 2, kill=['@loss=1:all'])[1] == [[-9, -9], [0, 0]]


def test_a_signal_some_seconds_after_the_start(job):
    assert job([[['pause']]] * 2, [DONE] * 2, kill=['0s:all'])[1] == [[-9, -9], [0, 0]]


def test_each_signal_is_sent_once_and_several_in_turn(job, capsys):
    code, codes, _ = job(
        [TRAINING] * 2, [[['on_term', 75], ['meet'], ['say', 'step 8/9'], ['pause']]] * 2,
        [DONE] * 2,
        kill=['7:0', '8:0'], term=['90:1'],
    )  # fmt: skip
    assert code == 0 and [each[0] for each in codes] == [-9, -9, 0]
    said = capsys.readouterr().err
    assert said.count('injected: ') == 2 and 'never due: SIGTERM to host 1 at step 90' in said


@pytest.mark.parametrize('code', [1, 2, 3])
def test_a_failed_host_ends_the_job(job, code):
    done = job([TRAINING, [['meet'], ['exit', code]]], [DONE, DONE])
    assert done[0] == code and len(done[1]) == 1


def test_a_host_that_saved_by_itself_restarts_all(job):
    code, codes, _ = job([TRAINING, [['meet'], ['exit', 75]]], [DONE, DONE])
    assert (code, codes) == (0, [[75, 75], [0, 0]])


def test_what_the_others_end_with_does_not_count(job):
    code, codes, _ = job([[['on_term', 3], *STEP]] * 2, [DONE] * 2, kill=['7:1'])
    assert (code, codes) == (0, [[3, -9], [0, 0]])


def test_survivors_that_hang_are_killed_soon(job, monkeypatch):
    monkeypatch.setattr(hosts_lib, 'VAIN_S', 0.01)
    code, codes, _ = job([DEAF] * 3, [DONE] * 3, kill=['7:1'])
    assert code == 0 and codes == [[-9, -9, -9], [0, 0, 0]]


def test_soon_is_less_than_five_seconds():
    assert 0 < hosts_lib.VAIN_S < 5


def test_a_host_that_saves_gives_the_others_the_whole_grace_period(job, monkeypatch):
    monkeypatch.setattr(hosts_lib, 'VAIN_S', 0)  # would kill them at once
    assert job([TRAINING] * 3, [DONE] * 3, term=['7:1'])[1][0] == [75, 75, 75]


def test_restarts_are_counted(job, capsys):
    code, codes, _ = job(*[[[['kill', 9]]]] * 4, max_restarts=3)
    assert (code, codes) == (1, [[-9]] * 4)
    assert 'restarted 3 times' in capsys.readouterr().err


def test_what_a_host_started_ends_with_it(job):
    # The process that is left holds the pipe: the job would wait for it.
    code, _, out = job([[['spawn'], ['exit', 0]]])
    assert code == 0
    with contextlib.suppress(ProcessLookupError):  # gone already
        child = os.pidfd_open(int(out.split()[-1]))
        assert select.select([child], [], [], 240)[0], 'it is still there'
        os.close(child)


def test_output_of_any_length_and_without_an_end_is_kept(job, monkeypatch):
    monkeypatch.setattr(hosts_lib, 'LONGEST_LINE', 100_000)
    long = 'x' * 150_000
    *parts, last, empty = job([[['write', f'{long}\na'], ['write', 'b']]])[2].split('\n')
    assert ''.join(part.removeprefix('0| ') for part in parts) == long
    assert (last, empty) == ('0| ab', '')


def test_each_host_knows_where_it_is():
    base = {
        'PATH': '/bin', 'MEGASCALE_NUM_SLICES': '2', 'TPU_WORKER_ID': '3',
        'JAX_COORDINATOR_PORT': '1', 'JAX_PLATFORMS': 'tpu',
        'XLA_FLAGS': '--a=1 --xla_force_host_platform_device_count=8 --b',
    }  # fmt: skip
    assert environment(base, 1, 4, 2, 1234, 5) == {
        'PATH': '/bin', 'JAX_PLATFORMS': 'cpu', 'PYTHONUNBUFFERED': '1',
        'XLA_FLAGS': '--a=1 --b --xla_force_host_platform_device_count=2',
        'JAX_COORDINATOR_ADDRESS': 'localhost:1234', 'JAX_NUM_PROCESSES': '4',
        'JAX_PROCESS_ID': '1', 'LAUNCH_ATTEMPT': '5',
    }  # fmt: skip


def launched(folder, attempts, *flags):
    """The launcher itself, in a process of its own."""
    command = [sys.executable, '-m', 'launch.local', f'--hosts={len(attempts[0])}', *flags, '--']
    return subprocess.Popen(
        [*command, *plan(folder, attempts)], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def read_until(process, text, times):
    """Reads lines until `text` has come so often."""
    for line in process.stdout:
        times -= text in line
        if not times:
            return
    raise AssertionError(f'the launcher ended first: {process.stderr.read()}')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_lets_the_hosts_save(tmp_path, number):
    with launched(tmp_path, [[TRAINING] * 2]) as process:
        read_until(process, 'step 7', 2)
        process.send_signal(number)
        read_until(process, 'told', 2)
        _, said = process.communicate(timeout=240)
    assert process.returncode == 75 and 'exit code 75, exit code 75' in said


def test_a_second_signal_to_the_launcher_kills_them(tmp_path):
    with launched(tmp_path, [[DEAF] * 2]) as process:
        read_until(process, 'step 7', 2)
        process.send_signal(signal.SIGINT)
        read_until(process, 'told', 2)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=240)
    assert process.returncode == 1 and 'signal 9, signal 9' in said


def test_hosts_do_not_outlive_a_launcher_that_is_killed(tmp_path):
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    with launched(tmp_path, [[[['hold', str(pipe)], *DEAF]] * 2]) as process:
        with pipe.open() as held:
            read_until(process, 'step 7', 2)
            process.kill()
            assert held.read() == ''  # which comes when no host holds the other end


def test_jax_finds_the_hosts_and_their_devices(tmp_path):
    script = tmp_path / 'ask.py'
    script.write_text(
        'from mossjax.parallel import distributed\n'
        'distributed.start()\n'
        'import jax\n'
        'print(jax.process_index(), jax.process_count(), jax.local_device_count(),'
        ' jax.device_count())\n'
    )
    out = io.BytesIO()
    code, _ = local.run_job(Hosts([sys.executable, str(script)], 2, 3, sink=out), 0)
    lines = {line for line in out.getvalue().decode().splitlines() if line[3:].count(' ') == 3}
    assert code == 0 and {'0| 0 2 3 6', '1| 1 2 3 6'} <= lines


@pytest.mark.parametrize('words, said', [
    ([], 'no command'),
    (['--', 'no-such-command'], 'no-such-command: no such command'),
    (['--kill', '7:2', '--', 'true'], '--kill 7:2: the host, after the last colon, is 0 to 1'),
    (['--term', '7', '--', 'true'], '--term 7: the host'),
    (['--term', 'x:1', '--', 'true'], '--term x:1: before the host say when'),
    (['--kill', '@:1', '--', 'true'], '--kill @:1: before the host'),
    (['--config.steps=3', '--', 'true'], '--config.steps=3 belongs to the command'),
    (['--hosts', '0', '--', 'true'], 'hosts'),
])  # fmt: skip
def test_bad_input_is_named(words, said, capsys):
    for name in local.FLAGS:
        local.FLAGS[name].unparse()
    assert local.run(words) == 2
    assert said in capsys.readouterr().err


def test_when_signals_are_due():
    parse = injection.parse
    step = parse('7:1', signal.SIGKILL, 2)
    assert (step.step, step.host, step.signal) == (7, 1, signal.SIGKILL)
    lines = {'step 6/9 loss=7': False, 'step 7/9': True, 'step 12/90': True, 'saved step 8': False,
             'misstep 9/9': False}  # fmt: skip
    assert {line: step.due(line) for line in lines} == lines
    text = parse('@saving: step:all', signal.SIGTERM, 2)
    assert (text.text, text.host) == ('saving: step', None)
    assert text.due('I saving: step 3') and not text.due('saved')
    after = parse('2.5s:0', signal.SIGTERM, 2)
    assert after.seconds == 2.5 and not after.due('step 9/9 2.5s')
