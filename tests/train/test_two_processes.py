"""The distributed path: several processes do what one does, whichever devices hold which rows."""

import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from mossjax.train import metrics
from mossjax.train.loop import fit
from tests.train.test_loop import ROOT, assert_same, loaded
from tests.train.toy_task import ToyTask, toy_config


def free_port() -> int:
    with socket.socket() as s:
        s.bind(('localhost', 0))
        return s.getsockname()[1]


def start(workdir, steps, port, *pairs, processes=2, devices=1):
    """All processes. jax catches SIGTERM in them, so they are ended by SIGKILL only."""
    flags = f'--xla_force_host_platform_device_count={devices}'
    command = [sys.executable, '-m', 'tests.train.toy_task', str(workdir), str(steps)]
    return [
        subprocess.Popen(
            [*command, 'save_every=1000000', f'process={i}/{processes}@{port}', *pairs], cwd=ROOT,
            env={**os.environ, 'XLA_FLAGS': flags}, stderr=subprocess.PIPE, text=True,
        )
        for i in range(processes)
    ]


def finish(processes):
    """Exit codes; whoever is not done in time is killed."""
    try:
        errors = [p.communicate(timeout=240)[1] for p in processes]
    finally:
        for p in processes:
            p.kill()
    return [p.returncode for p in processes], errors


def test_two_processes_train_as_one_and_share_their_checkpoints(tmp_path):
    """The second of which is torn: both go on from the first, to the same bits."""
    run = tmp_path / 'two'

    def both():
        codes, errors = finish(start(run, 6, free_port(), 'save_every=3'))
        assert codes == [0, 0], errors

    both()
    before = loaded(run, 6)
    (run / 'checkpoints/6/params/manifest.ocdbt').unlink()
    both()
    assert sorted(p.name for p in (run / 'checkpoints').iterdir()) == ['3', '6', 'torn-6']
    assert_same(loaded(run, 6), before)
    fit(ToyTask(), toy_config(6), tmp_path / 'one')
    runs = [metrics.read(tmp_path / name / 'metrics.jsonl') for name in ('two', 'one')]
    two, one = ([line['loss'] for line in run] for run in runs)
    assert len(two) == 6
    np.testing.assert_allclose(two, one, rtol=1e-6)
    for a, b in zip(
        *(np.concatenate([np.ravel(x) for x in (i['params']['kernel'], i['params']['bias'])])[None]
          for i in (loaded(tmp_path / 'two'), loaded(tmp_path / 'one'))), strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)


TENSOR = ('mesh.tensor=2', "rules='fsdp_tensor'")  # of a pair of devices both hold the same rows


@pytest.mark.slow
@pytest.mark.parametrize('processes, order, pairs', [
    (2, '3,0,2,1', ()),
    (4, '7,2,5,0,3,6,1,4', TENSOR),  # every pair belongs to two processes
])  # fmt: skip
def test_devices_in_any_order_give_the_same_bits(processes, order, pairs, tmp_path):
    runs = {'ordered': pairs, 'permuted': (*pairs, f'order={order}')}
    for name, more in runs.items():
        codes, errors = finish(start(
            tmp_path / name, 4, free_port(), *more, processes=processes, devices=2
        ))  # fmt: skip
        assert codes == [0] * processes, errors
    lines = [metrics.read(tmp_path / name / 'metrics.jsonl') for name in runs]
    ordered, permuted = ([(x['step'], x['loss'], x['grad_norm']) for x in each] for each in lines)
    assert len(ordered) == 4 and ordered == permuted
    assert_same(*(loaded(tmp_path / name) for name in runs))


@pytest.mark.slow
def test_a_notice_to_one_process_stops_both_at_the_same_step(tmp_path):
    processes = start(tmp_path, 1_000_000, free_port())
    lines = tmp_path / 'metrics.jsonl'
    while all(p.poll() is None for p in processes) and not metrics.read(lines)[2:]:
        pass
    processes[1].send_signal(signal.SIGTERM)
    codes, errors = finish(processes)
    assert codes == [75, 75], errors
    (saved,) = (int(p.name) for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit())
    assert metrics.read(lines)[-1]['step'] == saved > 2
    assert_same(loaded(tmp_path)['params'], loaded(tmp_path, saved)['params'])
